"""The host's refiner in a job of several phases: each begins with the pass's own checkpoint and its prompts, and switches by the host's rule."""

import pytest

from tests.host.double.jobs import ON, far, nothing_left
from tests.host.double.model import Model

pytestmark = pytest.mark.usefixtures("settings_page")
PROMPT = "a butterfly, on (red:1.3) flowers under the sky"


@pytest.fixture
def refiner(host):
    """A checkpoint with a text encoder of its own: prompts of the other one would not fit."""
    model = Model("refiner", width=3)
    host.sd_models.known["refiner"] = model
    return model


@pytest.fixture
def called(host, refiner, monkeypatch):
    """Of every model call in a phase: (which phase, which checkpoint)."""
    seen = []

    def watch(model):
        apply = model.apply_model

        def apply_model(x, t, cond):
            if host.shared.state.textinfo:
                seen.append((host.shared.state.textinfo.split()[2], model.sd_checkpoint_info))
            return apply(x, t, cond)

        monkeypatch.setattr(model, "apply_model", apply_model)

    for model in (host.model, refiner):
        watch(model)
    return seen


def runs(seen):
    """Without repetitions."""
    return [one for index, one in enumerate(seen) if index == 0 or seen[index - 1] != one]


CASES = [("text", "euler", "accdiffusion", True), ("text", "heun", "multidiffusion", False), ("picture", "dpmpp_2m", "accdiffusion", False)]


@pytest.mark.parametrize(("kind", "sampler", "method", "by_steps"), [*CASES, ("picture", "ddim", "multidiffusion", True)])
def test_every_phase_begins_with_the_base_and_ends_with_the_refiner(host, samplers, job_of_kind, called, kind, sampler, method, by_steps):
    host.shared.opts.refiner_switch_by_sample_steps = by_steps
    given = {"hr_scale": 3.0} if kind == "text" else {"width": 192, "height": 192}
    given |= {
        "sampler_name": sampler,
        "steps": 8,
        "prompt": PROMPT,
        "refiner_checkpoint_info": "refiner",
        "refiner_switch_at": 0.4,
        "n_iter": 2 if sampler == "euler" else 1,
    }
    p = job_of_kind(kind, {"method": method, "phases": "progressive", "word_threshold": 0.5}, **given)
    made = host.run(p)
    assert [one.size for one in made] == [(192, 192)] * p.n_iter
    assert runs(called) == [("1/2", "base"), ("1/2", "refiner"), ("2/2", "base"), ("2/2", "refiner")] * p.n_iter
    assert not p.scripts.reports
    nothing_left(host, samplers)
    host.sd_models.reload_model_weights()
    assert host.model.sd_checkpoint_info == host.shared.sd_model.sd_checkpoint_info


def test_a_refiner_that_is_never_reached_changes_nothing(host, refiner, called):
    expected = host.run(host.text_job(ON))[0]
    p = host.text_job(ON, refiner_checkpoint_info="refiner", refiner_switch_at=1.0)
    assert far(host.run(p)[0], expected) == 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_refiner_s_vae_works_in_tiles_too(host, job_of_kind, refiner, monkeypatch, kind):
    host.vae.TILE, host.vae.HALO = 12, 2
    decoded = []
    decoder = refiner.first_stage_model.decoder
    forward = type(decoder).forward

    def watch(self, z):
        decoded.append((self is decoder, tuple(z.shape[-2:])))
        return forward(self, z)

    monkeypatch.setattr(type(decoder), "forward", watch)
    host.run(job_of_kind(kind, ON, refiner_checkpoint_info="refiner", refiner_switch_at=0.5, steps=8))
    sizes = [size for is_refiner_s, size in decoded if is_refiner_s]
    assert sizes
    assert all(max(size) <= 12 for size in sizes)
    assert "forward" not in vars(decoder)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_stop_while_the_refiner_s_prompts_are_encoded_gives_the_best_picture_so_far(host, samplers, job_of_kind, refiner, monkeypatch, kind):
    encode = refiner.get_learned_conditioning

    def stop(texts):
        if list(texts) != [PROMPT]:
            host.shared.state.interrupted = True
        return encode(texts)

    monkeypatch.setattr(refiner, "get_learned_conditioning", stop)
    settings = {"method": "accdiffusion", "word_threshold": 0.5}
    p = job_of_kind(kind, settings, prompt=PROMPT, refiner_checkpoint_info="refiner", refiner_switch_at=0.6, steps=8)
    (made,) = host.run(p)
    assert host.shared.state.interrupted
    assert made.size == (128, 128)
    assert not p.scripts.reports
    nothing_left(host, samplers)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_every_phase_begins_with_the_networks_of_its_pass(host, job_of_kind, refiner, monkeypatch, kind):
    """The host lets go of them where it makes a checkpoint anew."""
    seen = []
    for model in (host.model, refiner):
        monkeypatch.setattr(model, "on_call", lambda model=model: seen.append((host.shared.state.textinfo, model.sd_checkpoint_info, model.strength)))
    given = {"hr_scale": 3.0, "hr_prompt": "a leaf <lora:0.2>"} if kind == "text" else {"width": 192, "height": 192}
    p = job_of_kind(kind, {"phases": "progressive"}, prompt="a leaf <lora:0.1>", steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, **given)
    host.run(p)
    of_pass = 0.2 if kind == "text" else 0.1
    found = runs([(text.split()[2], name, strength) for text, name, strength in seen if text])
    assert found == [(phase, *one) for phase in ("1/2", "2/2") for one in (("base", of_pass), ("refiner", 0.0))]


def test_networks_are_left_alone_where_the_host_has_been_told_so(host, job_of_kind, refiner):
    p = job_of_kind("picture", {"phases": "progressive"}, steps=8, refiner_checkpoint_info="refiner", refiner_switch_at=0.4, width=192, height=192)
    host.run(p)
    host.model.strength, p.disable_extra_networks = 0.3, True
    host.adapter("networks").Networks(p).activate()
    assert host.model.strength == 0.3
