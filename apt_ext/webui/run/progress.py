"""The host's progress bar, text and ETA over all phases: they follow the work done, counted in views of the model."""

from __future__ import annotations

from modules import shared

from apt_ext.core.phases import Phase
from apt_ext.webui.model import FACTOR
from apt_ext.webui.run.pace import Measuring

__all__ = ["Progress", "hires_jobs"]

PARTS = 10_000  # of a job of the bar


def hires_jobs(views: int, first_pass_steps: int) -> int:
    """How many jobs of the host's bar the phases take, where the first pass takes one: as many times its steps as they evaluate views."""
    return max(1, round(views / max(1, first_pass_steps)))


class Progress:
    """Moves the host's bar while the phases run.

    It is moved by the jobs alone, which are counted in small parts for so long: the steps are the host's own of the phase, for the callbacks of
    other extensions are told them.

    Args:
        views: of every step of every phase, as planned.
        jobs: how many jobs of the bar the phases take.
        measuring: told of the views too.
    """

    def __init__(self, phases: list[Phase], views: list[list[int]], jobs: int, measuring: Measuring):
        self.phases, self.views, self.jobs, self.measuring = phases, views, jobs, measuring
        self.total = max(1, sum(map(sum, views)))
        self.first_job, self.job_count = shared.state.job_no, shared.state.job_count
        self.phase = self.step = self.inside = 0

    def begin(self, phase: Phase) -> None:
        """A phase begins."""
        self.phase, self.step, self.inside = phase.number - 1, 0, 0
        self.measuring.begin()
        rows, columns = phase.size
        shared.state.textinfo = f"APT phase {phase.number}/{len(self.phases)} {columns * FACTOR}x{rows * FACTOR}"
        shared.state.current_image_sampling_step = 0  # the live preview counts the steps since the last one
        shared.state.sampling_step = 0  # the host's share of the phase before, which some hosts keep until this one's sampler starts
        self.show()

    def done(self, step: int, count: int) -> None:
        """`count` views of a step are done. A sampler that goes back to an earlier step does not take the bar back."""
        if step > self.step:
            self.step, self.inside = step, 0
        self.inside += count
        self.measuring.done(count)
        self.show()

    def show(self) -> None:
        """Bring the host's bar to where the work is."""
        if self.job_count < 1:  # nobody has laid the bar out
            return
        current = self.views[self.phase]
        before = sum(map(sum, self.views[: self.phase])) + sum(current[: self.step])
        here = min(self.inside, current[self.step]) if self.step < len(current) else 0
        # The host adds the share of its own steps, less than one part; a part is kept for each phase, where they begin anew.
        whole = self.jobs * PARTS - len(self.phases)
        shared.state.job_count = self.job_count * PARTS
        shared.state.job_no = self.first_job * PARTS + int(min((before + here) / self.total, 1.0) * whole) + self.phase

    def end(self) -> None:
        """The phases are over, finished or not; the host itself goes on to the next job."""
        state = shared.state
        state.job_no, state.job_count = self.first_job + self.jobs - 1, self.job_count
        state.sampling_step = state.sampling_steps
        state.textinfo = None
