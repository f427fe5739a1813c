"""Other extensions' hooks on attention: what they go by is given to them, or the job is refused; what they leave on the model is taken off."""

import numpy as np
import pytest
import torch

from tests.host.double.jobs import ON, far, pixels

pytestmark = pytest.mark.usefixtures("settings_page")

PLAIN = {**ON, "colour_fix": 0.0}  # its colours would be the smaller picture's


@pytest.fixture
def hooks(host):
    import importlib

    from tests.host.double import hooks

    return importlib.reload(hooks)


@pytest.fixture
def run(host, job_of_kind):
    """(kind, script, settings) -> the picture, with another extension's script beside."""

    def run(kind, script=None, asked=PLAIN, **given):
        p = job_of_kind(kind, asked, **given)
        if script is not None:
            p.scripts.alwayson_scripts.append(script)
        return host.run(p)[0]

    return run


@pytest.fixture
def negpip(host, hooks, monkeypatch):
    """The extension's double, told of every step of the host's denoiser."""
    script = hooks.NegPiP(host.model)
    tell = host.sd_samplers_cfg_denoiser._tell

    def told():
        tell()
        script.tell_step()

    monkeypatch.setattr(host.sd_samplers_cfg_denoiser, "_tell", told)
    return script


@pytest.mark.parametrize("kind", ["text", "picture"])
@pytest.mark.parametrize("method", ["demofusion", "multidiffusion"])
def test_a_hook_that_counts_rows_sees_those_of_one_view(host, run, negpip, kind, method):
    def made(batch):
        return run(kind, negpip, {**PLAIN, "method": method, "window_batch": batch})

    one = made(1)
    assert far(one, run(kind, asked={**PLAIN, "method": method})) > 5
    for batch in (2, 16):
        assert far(one, made(batch)) == 0


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_hook_that_counts_calls_counts_one_for_all_views(host, run, negpip, kind):
    together = run(kind, negpip)
    host.shared.opts.batch_cond_uncond = False
    assert far(together, run(kind, negpip)) <= 1
    assert far(together, run(kind)) > 5


def follows(made, plain, script):
    """Correlation of a picture's change, of latent pixels, with the regions over the whole picture, and with those of a window repeated."""
    change = (pixels(made) - pixels(plain)).mean(-1)
    small = change.reshape(change.shape[0] // 8, 8, -1, 8).mean((1, 3))
    repeated = script.map(8, 8).repeat(2, 3)[: small.shape[0], : small.shape[1]]
    return [abs(np.corrcoef(small.ravel(), region.numpy().ravel())[0, 1]) for region in (script.map(*small.shape), repeated)]


LAYOUTS: dict[str, tuple[str, list[tuple[float, ...]], list[tuple[float, ...]], list[float]]] = {
    "columns": ("Horizontal", [(0, 1)], [(0, 0.5, 1)], [0, 0.1]),
    "rows": ("Vertical", [(0, 0.5), (0.5, 1)], [(0, 0.3, 1), (0, 1)], [0, 0.1, 0]),
    "matrix": ("Horizontal", [(0, 0.6), (0.6, 1)], [(0, 0.5, 1), (0, 1)], [0.1, 0, 0]),
}


@pytest.mark.parametrize("given", [{}, {"width": 96, "height": 64}], ids=["square", "wide"])
@pytest.mark.parametrize("border", ["inside", "over"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_lie_over_the_whole_picture(host, run, hooks, layout, border, given):
    mode, edges, inner, values = LAYOUTS[layout]
    bands = [hooks.cells(*edge, cols=hooks.cells(*cuts))[0] for edge, cuts in zip(edges, inner, strict=True)]
    script = hooks.RegionalPrompter(host.model, mode, bands, values=values)
    plain = run("text", asked={**PLAIN, "border": border}, **given)
    made = run("text", script, {**PLAIN, "border": border}, **given)
    whole, repeated = follows(made, plain, script)
    assert whole > 0.75
    assert repeated < 0.5 * whole
    assert script.aratios == bands
    assert (script.h, script.w) == (given.get("height", 64), given.get("width", 64))


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_masks_lie_over_the_whole_picture(host, run, hooks, kind):
    half = torch.zeros(1, 64, 64)
    half[..., 32:] = 1
    script = hooks.RegionalPrompter(host.model, "Mask", masks=[1 - half, half], values=[0, 0.1])
    plain, made = run(kind), run(kind, script)
    whole, repeated = follows(made, plain, script)
    assert whole > 0.75
    assert repeated < 0.5 * whole
    assert torch.equal(script.regmasks[1], half)


def refused(host, job_of_kind, script, kind="picture", asked=PLAIN, others=(), **given):
    p = job_of_kind(kind, asked, **given)
    p.script_args += others
    p.scripts.alwayson_scripts.append(script)
    with pytest.raises(host.adapter("errors").APTError) as caught:
        host.run(p)
    assert not host.model.calls
    return str(caught.value)


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_what_reads_the_self_attention_of_the_whole_picture_is_refused_and_taken_off(host, job_of_kind, hooks, kind):
    layer = hooks.listens_to_self_attention(host.model)
    told = []

    class Guidance(hooks.Script):  # type: ignore[name-defined]
        name = "Self Attention Guidance"
        args_from, args_to = 1, 3

        def put(self, p):
            pass

        def postprocess(self, p, processed, *args):
            told.append(args)
            del layer.forward

    sentence = refused(host, job_of_kind, Guidance(host.model), kind, others=(True, 0.75, "of another"))
    assert "Self-Attention Guidance" in sentence
    assert told == [(True, 0.75)]
    assert host.run(job_of_kind(kind, PLAIN))[0].size == (128, 128)


def test_regions_that_cannot_be_cut_are_refused(host, job_of_kind, hooks):
    for mode, diff, asked, tiling, words in (
        ("Prompt", None, PLAIN, False, "mode 'Prompt'"),
        ("Prompt-Ex", None, PLAIN, False, "mode 'Prompt-Ex'"),
        ("Horizontal", True, PLAIN, False, "in the attention of the whole picture"),
        ("Horizontal", None, {**PLAIN, "method": "accdiffusion"}, False, "words per window to 0"),
        ("Horizontal", None, PLAIN, True, "round the border"),
    ):
        script = hooks.RegionalPrompter(host.model, mode)
        script.diff = diff
        assert words in refused(host, job_of_kind, script, asked=asked, tiling=tiling)
        assert script.ended == 1
        assert all("forward" not in vars(layer) for layer in hooks.layers(host.model))


def test_a_script_that_is_off_is_no_reason(host, run, hooks):
    class Off(hooks.RegionalPrompter):  # type: ignore[name-defined]
        active = False

        def put(self, p):
            pass

    assert far(run("text", Off(host.model, "Prompt")), run("text")) == 0


def test_after_an_error_in_the_middle_the_hooks_are_off(host, run, negpip, hooks):
    def on_call():
        if host.shared.state.textinfo:
            raise RuntimeError("broken")

    host.model.on_call = on_call
    with pytest.raises(RuntimeError, match="broken"):
        run("text", negpip)
    assert negpip.ended == 1
    assert all("forward" not in vars(layer) for layer in hooks.layers(host.model))


def test_an_extension_that_cannot_be_ended_does_not_hide_the_error(host, run, negpip, monkeypatch):
    def fails(*args):
        raise KeyError("its own")

    monkeypatch.setattr(negpip, "postprocess", fails)
    host.model.on_call = lambda: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        run("picture", negpip)
