"""Regions with texts of their own: which windows are told them, that they go together with everything else, and that nothing stays."""

import importlib

import pytest
import torch

from tests.host.double.jobs import ON, far, left_on_p, needs_letters, nothing_left

pytestmark = pytest.mark.usefixtures("settings_page")

BARN = "0-50% x 0-100%: a (red:1.2) barn"
QUARTERS = {"enabled": True, "method": "multidiffusion", "overlap": 0.0, "jitter": 0.0, "window": "64", "colour_fix": 0.0, "window_batch": 4}


@pytest.fixture
def told(host, monkeypatch):
    """Every prompt encoding that a model call saw, with the call's rows."""
    seen = []
    apply = host.model.apply_model
    monkeypatch.setattr(host.model, "apply_model", lambda x, t, cond: seen.append(cond["c_crossattn"][0].clone()) or apply(x, t, cond))
    return seen


def texts(host, call, *known, marked=0):
    """Of every row of a call, which of these texts it is the encoding of; None for another one."""
    encodings = {text: host.model.get_learned_conditioning([text])[0] for text in known}
    return [next((text for text, made in encodings.items() if torch.equal(made, row[marked : marked + len(made)])), None) for row in call]


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_windows_are_told_the_regions_that_they_lie_in(host, samplers, job_of_kind, told, kind):
    p = job_of_kind(kind, QUARTERS | {"regions": f"{BARN}\n50-100% x 50-100%: snow"}, prompt="a leaf,")
    (made,) = host.run(p)
    barn, snow = "a leaf, a (red:1.2) barn", "a leaf, snow"
    assert texts(host, told[-1], barn, "a leaf,", snow)[:4] == [barn, "a leaf,", barn, snow]
    assert torch.equal(told[-1][4:], torch.full_like(told[-1][4:], -0.5)), "the negative prompt is the whole one"
    nothing_left(host, samplers)
    assert not left_on_p(p)
    assert p.extra_generation_params["APT regions"] == f"{BARN}\n50-100% x 50-100%: snow"
    assert far(made, host.run(job_of_kind(kind, QUARTERS, prompt="a leaf,"))[0]) > 0


def test_without_regions_nothing_is_written_and_nothing_changes(host):
    p = host.text_job(QUARTERS)
    expected = host.run(p)[0]
    assert "APT regions" not in p.extra_generation_params
    q = host.text_job(QUARTERS | {"regions": ""})
    assert far(host.run(q)[0], expected) == 0


def test_they_follow_the_zoom(host, told):
    """A window of a later phase is smaller: fewer of them lie in the region."""
    host.run(host.text_job(QUARTERS | {"regions": "0-25% x 0-25%: a barn", "phases": "progressive"}, hr_scale=4.0, prompt="a leaf"))
    last = [row for call in told[-4:] for row in texts(host, call, "a leaf, a barn", "a leaf")]
    assert last.count("a leaf, a barn") == 1
    assert last.count("a leaf") == 15


def test_a_text_of_more_chunks_than_the_prompt_makes_all_of_them_as_long(host, told):
    long = ", ".join(f"word{k}" for k in range(60))
    p = host.text_job(QUARTERS | {"regions": f"0-50% x 0-100%: {long}"}, prompt="a leaf")
    host.run(p)
    encoded = host.model.get_learned_conditioning([f"a leaf, {long}"])[0]
    assert len(encoded) > 77
    assert told[-1].shape[1] == len(encoded)
    assert texts(host, told[-1], f"a leaf, {long}", "a leaf")[:4] == [f"a leaf, {long}", "a leaf"] * 2
    assert host.run(host.text_job(QUARTERS | {"regions": f"0-50% x 0-100%: {long}", "window_batch": 1}, prompt="a leaf"))[0].size == (128, 128)


@needs_letters
def test_they_come_behind_the_words_that_a_window_keeps_and_into_the_picture_of_them(host):
    args = QUARTERS | {"method": "accdiffusion", "word_threshold": 0.5, "regions": BARN, "draw_words": True}
    p = host.text_job(args, prompt="a butterfly, on (red:1.3) flowers under the sky")
    kept = {}
    show = host.adapter("script").APTScript.postprocess

    def postprocess(self, q, processed, *more):
        kept.update(host.state.job_of(q).labels)
        return show(self, q, processed, *more)

    host.adapter("script").APTScript.postprocess = postprocess
    host.run(p)
    windows, (left_up, right_up, *_) = kept[0, 0]
    assert [window.left for window in windows[:2]] == [0, 8]
    assert left_up.endswith(", a (red:1.2) barn")
    assert "barn" not in right_up
    assert left_up.removesuffix(", a (red:1.2) barn")


def test_of_prompts_joined_by_and_the_first_has_them(host, told):
    host.run(host.text_job(QUARTERS | {"regions": BARN}, prompt="a leaf AND a stone"))
    rows = [row for call in told[-3:] for row in texts(host, call, "a leaf, a (red:1.2) barn", "a leaf", "a stone", "a stone, a (red:1.2) barn")]
    assert "a leaf, a (red:1.2) barn" in rows
    assert "a stone" in rows
    assert "a stone, a (red:1.2) barn" not in rows


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_they_go_together_with_a_control_unit(host, job_of_kind, picture, told, kind):
    controlnet = importlib.reload(importlib.import_module("tests.host.double.controlnet"))
    p = job_of_kind(kind, QUARTERS | {"regions": BARN}, prompt="a leaf")
    controlnet.with_units(p, (picture.resize((128, 128)), "ControlNet", {}))
    made = host.run(p)[0]
    rows = texts(host, told[-1], "a leaf, a (red:1.2) barn", "a leaf", marked=int(kind == "picture"))  # its vector is in front, but in a hires pass
    assert rows[:4] == ["a leaf, a (red:1.2) barn", "a leaf"] * 2
    assert far(made, host.run(job_of_kind(kind, QUARTERS | {"regions": BARN}, prompt="a leaf"))[0]) > 0, "the unit acts too"
    assert far(made, _only_unit(host, job_of_kind, controlnet, kind, picture)) > 0, "and so do the regions"


def _only_unit(host, job_of_kind, controlnet, kind, picture):
    p = job_of_kind(kind, QUARTERS, prompt="a leaf")
    controlnet.with_units(p, (picture.resize((128, 128)), "ControlNet", {}))
    return host.run(p)[0]


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_line_that_cannot_be_read_is_refused_before_anything_is_sampled(host, job_of_kind, kind):
    with pytest.raises(host.adapter("errors").APTError, match="Regions: line 1, 'left: a barn', cannot be read"):
        host.run(job_of_kind(kind, ON | {"regions": "left: a barn"}))
    assert not host.model.calls


def test_conditioning_of_another_making_is_said(host, monkeypatch):
    made = host.prompt_parser.get_multicond_learned_conditioning
    monkeypatch.setattr(
        host.prompt_parser, "get_multicond_learned_conditioning", lambda model, prompts, *rest: made(model, ["[x:y:1] z"] * len(prompts), *rest)
    )
    p = host.text_job(QUARTERS | {"regions": BARN})
    host.run(p)
    assert list(p.comments) == [host.passes.MADE_BY_ANOTHER]
