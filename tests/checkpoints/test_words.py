"""Prompts: plain, long and weighted; words per window by the UNet's cross-attention."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.checkpoints import packages, prompts
from apt_ext.checkpoints.job import PromptJob
from apt_ext.checkpoints.library import upscale
from apt_ext.checkpoints.window_words import WindowWords, seen_in
from apt_ext.core.windows import Window
from apt_ext.demo.cli import main
from apt_ext.demo.job import plan_job
from apt_ext.demo.sources import from_picture
from apt_ext.options import Options, Schedule

needs_compel = pytest.mark.skipif(bool(packages.missing("compel")), reason="compel is not installed: pip install compel")
LONG = "a red cat and a blue dog under a tree by the river, in the evening sun of a late summer day, painted"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a red cat", True),
        ("", True),
        ("a (red:1.2) cat", False),
        ("a (red cat)1.3", False),
        ("a cat++", False),
        ("a cat-- on it", False),
        ("a well-kept cat (old)", True),
        (LONG, False),
    ],
)
def test_weights_and_length_are_noticed(opened, text, plain):
    assert prompts.is_plain(opened("sd1").pipe, text) == plain


@needs_compel
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_long_and_weighted_prompts_are_encoded_by_compel(opened, kind):
    model = opened(kind)
    plain, weighted = model.words("a red cat", "fog"), model.words("a (red:1.5) cat", "fog")
    long, more = model.words(LONG, "fog"), model.words(LONG + " by a master", "fog")
    assert plain[0]["context"].shape == weighted[0]["context"].shape == (1, 77, plain[0]["context"].shape[2])
    assert torch.allclose(plain[1]["context"], weighted[1]["context"], atol=1e-5), "what has no weights is what the pipeline makes of it"
    assert not torch.allclose(plain[0]["context"], weighted[0]["context"], atol=1e-2)
    assert long[0]["context"].shape[1] == long[1]["context"].shape[1] == 2 * 77
    assert not torch.equal(long[0]["context"], more[0]["context"]), "the end of a long prompt counts"
    same = prompts.encode(model.pipe, model.family, "a (red)1.5 cat", "fog")[0]["context"]
    assert torch.equal(same, weighted[0]["context"]), "the WebUI's way to write a weight and compel's"


@needs_compel
def test_a_weighted_prompt_carries_a_job(opened, photo):
    made = [upscale(opened("sdxl"), photo, prompt=words, scale=2, steps=8).image for words in ("a red cat", "a (red:1.6) cat")]
    assert (np.asarray(made[0]) != np.asarray(made[1])).any()


def test_without_compel_a_long_or_weighted_prompt_is_refused_with_the_remedy(opened, monkeypatch):
    monkeypatch.setattr(prompts, "compel_or_none", lambda: None)
    for text in ("a (red:1.21) cat", LONG + " again"):
        with pytest.raises(ValueError, match="has weights or more than 75 tokens, which needs the package compel; run: pip install compel"):
            opened("sd1").words(text, "")


def test_a_family_without_negative_prompts_says_so(opened):
    with pytest.raises(ValueError, match="Flux has no place for a negative prompt"):
        opened("flux").words("cat", "fog")


@pytest.fixture
def looking(opened, photo):
    """A kind of checkpoint -> where it sees the words of a job's prompt, and the job's plan."""

    def look(kind, prompt="a red cat, sleeping . under trees"):
        model = opened(kind)
        job = PromptJob(2.0, Options(method="accdiffusion", word_threshold=0.5), Schedule(steps=8), prompt=prompt, negative="fog")
        source = from_picture(model, Image.open(photo).convert("RGB"), job)
        return model, job, source, seen_in(model, job, source, model._noise, model.words(prompt, "fog")[0]), plan_job(model, source, job)

    return look


@pytest.mark.parametrize("kind", ["sd1", "sd2v", "sdxl"])
def test_each_window_keeps_the_words_that_it_shows(looking, kind):
    model, job, source, seen, plan = looking(kind)
    assert [seen.words[index] for index in seen.judged] == ["a", "red", "cat,", "sleeping", "under", "trees"], "marks alone are no words"
    assert seen.masks.shape[1:] == torch.Size((2, 2)), "a quarter of the base, in whole fours"
    calls = []
    words = WindowWords(seen, plan.setups[-1], job, lambda text: calls.append(text) or model.words(text, "fog")[0])
    windows = plan.setups[-1].windows(0)
    texts = [words.text(window) for window in windows]
    assert len(set(texts)) > 1
    assert set(texts) <= set(calls), "encoded before the phase begins"
    before = len(model.network._modules), sum(len(module._forward_hooks) for module in model.network.modules())
    assert before[1] == 0
    made = model.conditioned(job, source)(plan.setups[-1])
    from apt_ext.core.conditioning import ViewBatch

    cut = made.condition(made.extra, ViewBatch(plan.setups[-1].phase.size, 1, tuple(windows)))
    for row, text in enumerate(texts):
        assert torch.equal(cut["prompt"]["context"][row], model.words(text, "fog")[0]["context"][0])
        assert torch.equal(cut["negative"]["context"][row], model.words("x", "fog")[1]["context"][0])
        if kind == "sdxl":
            assert torch.equal(cut["prompt"]["pooled"][row], model.words(text, "fog")[0]["pooled"][0])


def test_words_per_window_change_the_picture_and_a_threshold_of_zero_does_not(opened, photo):
    made = [
        np.asarray(
            upscale(opened("sd1"), photo, prompt="a red cat sleeping", scale=2, method="accdiffusion", word_threshold=c, steps=8, strength=0.6).image, int
        )
        for c in (0.5, 0.0)
    ]
    assert (made[0] != made[1]).any()


def test_a_region_s_text_follows_the_prompt_in_its_windows_and_carries_a_job(looking, opened, photo, capsys):
    """The windows of the left half are told of the barn, and no others; the embedded model has no regions."""
    model, job, _, _, plan = looking("sd1")
    job = dataclasses.replace(job, options=Options(regions="0-50% x 0-100%: a red barn"))
    setup = dataclasses.replace(plan.setups[-1], options=job.options)
    words = WindowWords(None, setup, job, lambda text: model.words(text, "fog")[0])
    assert words.text(Window(0, 0, 8, 8)) == words.text(Window(12, 2, 8, 8)) == f"{job.prompt}, a red barn"
    assert words.text(Window(0, 10, 8, 8)) == job.prompt
    barn, plain = (np.asarray(upscale(model, photo, prompt="a cat", scale=2, steps=8, **more).image) for more in ({"regions": job.options.regions}, {}))
    assert (barn != plain).any()
    with pytest.raises(ValueError, match="Regions 'a red barn' have no place on SD3"):
        upscale(opened("sd3"), photo, scale=2, regions=job.options.regions)
    with pytest.raises(ValueError, match="more tokens than fit one prompt"):
        upscale(model, photo, prompt=LONG, scale=2, regions=job.options.regions)
    assert main(["upscale", str(photo), "--region", "0-50% x 0-100%: a red barn"]) == 2
    assert "--region needs a checkpoint" in capsys.readouterr().err


def test_a_weighted_or_a_lone_word_stays_whole(looking):
    assert looking("sd1", "cat")[3] is None
