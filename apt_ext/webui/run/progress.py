"""The host's progress bar, text and ETA over all phases: they follow the work done, counted in views of the model."""

from __future__ import annotations

from modules import shared

from apt_ext.core.phases import Phase
from apt_ext.webui.model import FACTOR
from apt_ext.webui.run.pace import Measuring

__all__ = ["Progress", "hires_jobs"]


def hires_jobs(views: int, first_pass_steps: int) -> int:
    """How many jobs of the host's bar the phases take, where the first pass takes one: as many times its steps as they evaluate views."""
    return max(1, round(views / max(1, first_pass_steps)))


class Progress:
    """Moves the host's state while the phases run.

    Args:
        views: of every step of every phase, as planned.
        jobs: how many jobs of the bar the phases take.
        measuring: told of the views too.
    """

    def __init__(self, phases: list[Phase], views: list[list[int]], jobs: int, measuring: Measuring):
        self.phases, self.views, self.jobs, self.measuring = phases, views, jobs, measuring
        self.total = max(1, sum(map(sum, views)))
        self.first_job = shared.state.job_no
        self.steps = max(1, -(-sum(map(len, views)) // jobs))
        self.phase = self.step = self.inside = self.reported = self.asked = 0

    def begin(self, phase: Phase) -> None:
        """A phase begins."""
        self.phase, self.step, self.inside, self.reported, self.asked = phase.number - 1, 0, 0, 0, 0
        self.measuring.begin()
        rows, columns = phase.size
        shared.state.textinfo = f"APT phase {phase.number}/{len(self.phases)} {columns * FACTOR}x{rows * FACTOR}"
        self.show()

    def done(self, step: int, count: int) -> None:
        """`count` views of a step are done. A sampler that goes back to an earlier step does not take the bar back."""
        if step > self.step:
            self.step, self.inside = step, 0
        self.inside += count
        self.measuring.done(count)
        self.show()

    def show(self) -> None:
        """Bring the host's state to where the work is."""
        state, current = shared.state, self.views[self.phase]
        before = sum(map(sum, self.views[: self.phase])) + sum(current[: self.step])
        here = min(self.inside, current[self.step]) if self.step < len(current) else 0
        position = min((before + here) / self.total, 1.0) * self.jobs
        job = min(int(position), self.jobs - 1)
        if self.first_job + job != state.job_no:
            # The live preview counts steps since the last one within a job; let it go on counting.
            state.current_image_sampling_step -= self.steps * (self.first_job + job - state.job_no)
            state.job_no = self.first_job + job
        state.sampling_steps = self.steps
        state.sampling_step = int((position - job) * self.steps)

    def own_steps(self) -> None:
        """Bring the host's state to the phase's own steps, which extensions read in the denoiser's callbacks: the last one reported, of all."""
        self.asked = self.asked or shared.state.sampling_steps  # the host has just set it; the bar has not come by yet
        shared.state.sampling_step, shared.state.sampling_steps = self.reported, self.asked

    def end(self) -> None:
        """The phases are over, finished or not; the host itself goes on to the next job."""
        shared.state.job_no = self.first_job + self.jobs - 1
        shared.state.sampling_step = shared.state.sampling_steps = self.steps
        shared.state.textinfo = None
