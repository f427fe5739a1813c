"""The engine under the host's CFG denoiser: nothing of it stays, and the sampler sees what it should."""

from __future__ import annotations

import pytest
import torch

from apt_ext.core.clock import StepClock
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import dilated_grid
from apt_ext.core.noise_levels import discrete_timestep
from apt_ext.core.phases import plan_phases
from apt_ext.core.plan import PhaseSetup
from apt_ext.core.residual import StepMixer
from apt_ext.core.types import ModelFacts, Size
from apt_ext.core.views import ViewCalls
from apt_ext.core.weights import PathWeights
from apt_ext.core.windows import Window
from apt_ext.demo.model import alphas_cumprod
from apt_ext.options import Options
from apt_ext.webui.model import POOLED
from apt_ext.webui.run.coordinates import SigmaCoordinates
from apt_ext.webui.run.engine import SINUSOID, PhaseRun, window_corners

TABLE = alphas_cumprod()
SIGMAS = ((1 - TABLE) / TABLE).sqrt()
FACTS = ModelFacts(Size(8, 8), 2, float(SIGMAS[-1]), discrete_timestep(SIGMAS))
PHASE = plan_phases((8, 8), (8, 8), (16, 16), "direct")[0]
LEVELS = [5.0, 2.0, 1.0, 0.0]


class Stopped(BaseException):
    pass


class Inner:
    """The host's wrapper around its network."""

    sigmas = SIGMAS

    def __init__(self):
        self.rows: list[int] = []
        self.most = 1000
        self.failure: BaseException | None = None

    def __call__(self, x, sigma, cond):
        self.rows.append(len(x))
        if self.failure is not None:
            raise self.failure
        if len(x) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return torch.tanh(x.roll(1, -1)) + cond[:, :, None, None]


class Guided(torch.nn.Module):
    """The host's CFG denoiser: both prompts in one call of its inner model."""

    def __init__(self, inner):
        super().__init__()
        self.model_wrap = inner

    @property
    def inner_model(self):
        return self.model_wrap

    def forward(self, x, sigma, scale=3.0):
        cond = torch.cat([torch.ones(len(x), 1), torch.zeros(len(x), 1)])
        prompt, without = self.inner_model(torch.cat([x, x]), torch.cat([sigma, sigma]), cond=cond).chunk(2)
        return without + scale * (prompt - without)


def latent(seed):
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def at(level):
    return torch.tensor([level])


def run_of(residual=None, model_calls=(1, 1, 1), window_batch=8, on_memory=None, on_views=lambda count: None):
    clock = StepClock(LEVELS, model_calls)
    setup = PhaseSetup(PHASE, Options(method="accdiffusion", gamma=0.0), FACTS, 0)
    run = PhaseRun(
        SigmaCoordinates(),
        StepMixer(clock, lambda sigma: PathWeights(0.25, 0.5, 1.0), residual),
        lambda model: setup.fuse(ViewCalls(model, window_batch, on_views=on_views), lambda: clock.step),
        on_memory=on_memory,
    )
    return run


@pytest.fixture
def fused_inside(host):
    return host.a1111.fused_inside


@pytest.fixture
def guided():
    return Guided(Inner())


def test_the_engine_runs_inside_and_only_there(guided, fused_inside):
    x, plain = latent(1), guided(latent(1), at(5.0))
    other = Guided(Inner())
    with fused_inside(guided, run_of()):
        assert isinstance(guided, Guided)
        assert type(other) is Guided
        fused = guided(x, at(5.0))
    assert fused.shape == x.shape
    assert not torch.allclose(fused, plain, atol=1e-3)
    assert torch.equal(guided(latent(1), at(5.0)), plain)


@pytest.mark.parametrize("ending", [None, ValueError, RuntimeError, Stopped, KeyboardInterrupt])
def test_the_denoiser_is_what_it_was_however_the_phase_ends(guided, fused_inside, ending):
    attributes = set(guided.__dict__)
    guided.model_wrap.failure = ending and ending("broken")

    def phase():
        with fused_inside(guided, run_of()):
            guided(latent(1), at(5.0))

    if ending:
        with pytest.raises(ending):
            phase()
    else:
        phase()
    assert type(guided) is Guided
    assert set(guided.__dict__) == attributes


def test_one_class_serves_all_phases(guided, fused_inside):
    seen = []
    for _ in range(2):
        with fused_inside(guided, run_of()):
            seen.append(type(guided))
    assert seen[0] is seen[1]


def test_the_residual_lands_in_the_sampler_s_own_tensor(guided, fused_inside):
    z_up, noise = latent(2), latent(3)
    x = latent(1)
    with fused_inside(guided, run_of((z_up, noise))):
        guided(x, at(5.0))
    torch.testing.assert_close(x, torch.lerp(latent(1), z_up + 5.0 * noise, 0.25))


def test_the_residual_comes_once_a_step(guided, fused_inside):
    steps: list[int] = []
    run = run_of((latent(2), latent(3)), model_calls=(2, 2, 1))
    with fused_inside(guided, run):
        for level, changed in [(5.0, True), (2.0, False), (2.0, True), (1.0, False), (1.0, True)]:
            x = latent(1)
            guided(x, at(level))
            steps.append(run.mixer.clock.step)
            assert torch.equal(x, latent(1)) is not changed
    run.mixer.clock.finish()
    assert steps == [0, 0, 1, 1, 2]


def test_without_a_residual_the_sampler_s_tensor_stays(guided, fused_inside):
    x = latent(1)
    with fused_inside(guided, run_of()):
        guided(x, at(5.0))
    assert torch.equal(x, latent(1))


def test_too_little_memory_halves_the_window_batch_and_changes_nothing_else(guided, fused_inside):
    halved = []

    def on_memory(error, batch):
        halved.append((str(error)[:18], batch))
        return batch // 2

    with fused_inside(guided, run_of()):
        expected = guided(latent(1), at(5.0))
    guided.model_wrap.most = 4
    with fused_inside(guided, run_of(on_memory=on_memory)):
        result = guided(latent(1), at(5.0))
        assert halved == [("CUDA out of memory", 8), ("CUDA out of memory", 4)]
        guided(latent(1), at(2.0))
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert len(halved) == 2, "the smaller batch stays for the next steps"


def test_torch_s_own_error_counts_too(guided, fused_inside):
    guided.model_wrap.failure = torch.cuda.OutOfMemoryError("no room")

    def on_memory(error, batch):
        guided.model_wrap.failure = None
        return 1

    with fused_inside(guided, run_of(on_memory=on_memory)):
        guided(latent(1), at(5.0))
    assert max(guided.model_wrap.rows[1:]) == 2


def test_what_cannot_be_halved_is_an_error(guided, fused_inside):
    guided.model_wrap.most = 0

    def on_memory(error, batch):
        raise RuntimeError("one window alone does not fit") from error

    with fused_inside(guided, run_of(on_memory=on_memory)), pytest.raises(RuntimeError, match="one window alone"):
        guided(latent(1), at(5.0))


def test_other_errors_of_the_model_pass_through(guided, fused_inside):
    guided.model_wrap.failure = RuntimeError("Expected all tensors to be on the same device")
    with fused_inside(guided, run_of(on_memory=lambda error, batch: pytest.fail("asked for memory"))), pytest.raises(RuntimeError, match="same device"):
        guided(latent(1), at(5.0))


def test_a_stop_between_two_calls_passes_through(guided, fused_inside):
    def stop(count):
        raise Stopped

    with fused_inside(guided, run_of(on_views=stop)), pytest.raises(Stopped):
        guided(latent(1), at(5.0))
    assert len(guided.model_wrap.rows) == 1


def test_attributes_are_the_model_s(guided, fused_inside):
    guided.model_wrap.inner_model = marker = object()
    with fused_inside(guided, run_of()):
        assert guided.inner_model is guided.inner_model
        assert guided.inner_model is not guided.model_wrap
        assert guided.inner_model.sigmas is SIGMAS
        assert guided.inner_model.inner_model is marker
        assert not hasattr(guided.inner_model, "no_such_thing")


def test_another_model_in_the_middle_of_a_phase_is_used(guided, fused_inside):
    first, second = guided.model_wrap, Inner()
    with fused_inside(guided, run_of()):
        guided(latent(1), at(5.0))
        calls = len(first.rows)
        guided.model_wrap = second
        guided(latent(1), at(2.0))
    assert len(first.rows) == calls > 0
    assert second.rows


CORNER = slice(POOLED + 2 * SINUSOID, POOLED + 4 * SINUSOID)


def places_as_embedding(places):
    return places.repeat_interleave(SINUSOID, dim=1)


@pytest.fixture
def sdxl():
    draw = torch.Generator().manual_seed(5)
    return {"cond": {"crossattn": torch.randn(2, 3, 4, generator=draw), "vector": torch.randn(2, POOLED + 6 * SINUSOID, generator=draw)}}


WINDOWS = (Window(0, 0, 8, 8), Window(4, 6, 8, 8), Window(-2, 8, 8, 8))


def test_every_window_has_its_own_crop_corner(sdxl):
    before = sdxl["cond"]["vector"].clone()
    condition = window_corners(places_as_embedding, offset=(5, 7))
    vector = condition(sdxl, ViewBatch((16, 16), 2, windows=WINDOWS))["cond"]["vector"]
    corners = [(5, 7), (37, 55), (5, 71)] * 2
    assert vector[:, CORNER].tolist() == [[top] * SINUSOID + [left] * SINUSOID for top, left in corners]
    rest = torch.ones(vector.shape[1], dtype=torch.bool)
    rest[CORNER] = False
    assert torch.equal(vector[:, rest], before.repeat_interleave(3, 0)[:, rest])
    assert torch.equal(sdxl["cond"]["vector"], before)


def test_the_corner_is_in_the_vector_s_precision(sdxl):
    sdxl["cond"]["vector"] = sdxl["cond"]["vector"].half()
    assert window_corners(places_as_embedding)(sdxl, ViewBatch((16, 16), 2, windows=WINDOWS))["cond"]["vector"].dtype == torch.float16


def test_dilated_views_keep_the_picture_s_corner(sdxl):
    grid = dilated_grid((16, 16), (2, 2))
    vector = window_corners(places_as_embedding)(sdxl, ViewBatch((16, 16), 2, grid=grid, part=(1, 4)))["cond"]["vector"]
    assert torch.equal(vector, sdxl["cond"]["vector"].repeat_interleave(3, 0))


def test_other_models_are_left_alone(sdxl):
    batch = ViewBatch((16, 16), 2, windows=WINDOWS)
    assert torch.equal(window_corners(None)(sdxl, batch)["cond"]["vector"], sdxl["cond"]["vector"].repeat_interleave(3, 0))
    short = {"cond": {"vector": torch.ones(2, POOLED)}}
    assert torch.equal(window_corners(places_as_embedding)(short, batch)["cond"]["vector"], torch.ones(6, POOLED))
    text = {"cond": {"c_crossattn": [torch.ones(2, 3, 4)]}}
    assert window_corners(places_as_embedding)(text, batch)["cond"]["c_crossattn"][0].shape == (6, 3, 4)
