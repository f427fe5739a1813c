"""Prompts per window through the double of the host: what is gathered, what each window is told, and that nothing stays."""

import pytest
import torch
from PIL import Image

from apt_ext.core.attention import AttentionMaps
from apt_ext.core.phases import plan_phases
from tests.host.double.jobs import far, left_on_p, needs_letters, nothing_left, pixels

pytestmark = pytest.mark.usefixtures("settings_page")
ACC = {"enabled": True, "method": "accdiffusion", "word_threshold": 0.5, "colour_fix": 0.0}
PROMPT = "a butterfly, on (red:1.3) flowers under the sky"


def hooks(host):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in host.model.model.diffusion_model.modules())


@pytest.fixture
def told(host, monkeypatch):
    """Every prompt encoding that a model call of a phase saw, with the call's rows."""
    seen = []
    apply = host.model.apply_model
    monkeypatch.setattr(host.model, "apply_model", lambda x, t, cond: seen.append(cond["c_crossattn"][0].clone()) or apply(x, t, cond))
    return seen


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "ddim"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_windows_are_told_their_own_words_and_nothing_stays(host, samplers, job_of_kind, kind, sampler):
    p = job_of_kind(kind, ACC, prompt=PROMPT, sampler_name=sampler, steps=5)
    (made,) = host.run(p)
    assert made.size == (128, 128)
    assert not p.scripts.reports
    assert p.extra_generation_params["APT word threshold"] == 0.5
    reduced = [text for text in host.model.cond_stage_model.encoded if text != PROMPT]
    assert reduced, "no window dropped a word"
    assert len(set(reduced)) == len(reduced), "a prompt was encoded twice"
    assert all(len(text) < len(PROMPT) for text in reduced)
    whole = host.run(job_of_kind(kind, ACC | {"word_threshold": 0.0}, prompt=PROMPT, sampler_name=sampler, steps=5))[0]
    assert far(made, whole) > 2
    assert far(made, host.run(job_of_kind(kind, ACC, prompt=PROMPT, sampler_name=sampler, steps=5))[0]) == 0
    assert not left_on_p(p)
    nothing_left(host, samplers)
    assert not hooks(host)


@pytest.mark.parametrize("method", ["demofusion", "multidiffusion"])
def test_other_methods_and_a_threshold_of_zero_look_at_nothing(host, job_of_kind, monkeypatch, method):
    monkeypatch.setattr(AttentionMaps, "add", None)
    host.run(job_of_kind("text", {"method": method}, prompt=PROMPT))
    host.run(job_of_kind("text", ACC | {"word_threshold": 0.0}, prompt=PROMPT))
    assert set(host.model.cond_stage_model.encoded) == {PROMPT}


def test_the_maps_are_the_mean_attention_of_the_prompt_alone(host, monkeypatch):
    recorded = {}
    means = AttentionMaps.means
    monkeypatch.setattr(AttentionMaps, "means", lambda self: recorded.setdefault("maps", means(self)))
    calls, unet = [], host.model.model.diffusion_model
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, context: calls.append((x.clone(), context.clone())) or forward(x, context))
    p = host.text_job(ACC, prompt=PROMPT, steps=3)
    host.run(p)
    first = [(x, context) for x, context in calls if x.shape[-1] == 8][:3]
    total = []
    for x, context in first:
        for block in (unet.input_blocks[1], unet.output_blocks[0]):  # at a quarter; neither the half nor the middle
            small = torch.nn.functional.avg_pool2d(x[:1], 4)
            q, k = block.attn2.to_q(small.flatten(2).transpose(1, 2)), block.attn2.to_k(context[:1])
            heads = [(q[..., 4 * h : 4 * h + 4] @ k[..., 4 * h : 4 * h + 4].transpose(1, 2) / 2).softmax(-1) for h in range(2)]
            total.append(torch.stack(heads).mean(0))
    expected = torch.stack(total).mean(0)[0].T.reshape(77, 2, 2)
    assert list(recorded["maps"]) == [(0, PROMPT)]
    torch.testing.assert_close(recorded["maps"][0, PROMPT], expected)


@pytest.mark.parametrize("together", [True, False])
def test_only_prompt_rows_of_local_windows_change(host, told, together):
    host.shared.opts.batch_cond_uncond = together
    host.run(host.text_job(ACC | {"window_batch": 2}, prompt=PROMPT, steps=3))
    whole, negative = host.model.get_learned_conditioning([PROMPT])[0], torch.full((77, 2), -0.5)
    own = {text: host.model.get_learned_conditioning([text])[0] for text in set(host.model.cond_stage_model.encoded) if text != PROMPT}
    kinds = set()
    for rows in told:
        for row in rows:
            kind = next((name for name, value in {"whole": whole, "negative": negative, **own}.items() if torch.allclose(row, value, atol=1e-6)), None)
            assert kind is not None, "a row sees what nobody encoded"
            kinds.add(kind)
    assert {"whole", "negative"} < kinds


def test_cond_and_uncond_together_or_apart_and_any_window_batch_make_the_same_picture(host):
    pictures = []
    for together, batch in ((True, 1), (False, 3), (True, 16)):
        host.shared.opts.batch_cond_uncond = together
        pictures.append(host.run(host.text_job(ACC | {"window_batch": batch}, prompt=PROMPT))[0])
    assert far(pictures[0], pictures[1]) <= 1
    assert far(pictures[0], pictures[2]) <= 1


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_batch_is_what_its_pictures_are_alone(host, job_of_kind, kind):
    together = host.run(job_of_kind(kind, ACC, prompt=PROMPT, batch_size=2, steps=5))
    alone = [host.run(job_of_kind(kind, ACC, prompt=PROMPT, seed=seed, steps=5))[0] for seed in (11, 12)]
    assert far(*alone) > 5
    assert [far(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True, True]


@pytest.mark.parametrize(
    "prompt",
    [
        "a butterfly on flowers AND a red sky over hills :0.6",
        "a [butterfly:beetle:2] on flowers, red sky",
        "first words BREAK second (words:1.4) with sky",
        "my style of a red sky with hills",
        " ".join(f"word{k}" for k in range(60)),
    ],
)
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_the_hosts_syntax_keeps_its_meaning(host, job_of_kind, monkeypatch, kind, prompt):
    monkeypatch.setitem(host.sd_hijack.EMBEDDINGS, "my style", 3)
    # Words move little but the colours of the double's pictures, and those are what re-anchoring puts back.
    coloured = ACC | {"reanchor": "off"}
    p = job_of_kind(kind, coloured, prompt=prompt, steps=5)
    (made,) = host.run(p)
    assert not p.scripts.reports
    assert not p.comments
    parser = host.prompt_parser
    flat = parser.get_multicond_prompt_list([prompt])[1]
    texts = {text for schedule in parser.get_learned_conditioning_prompt_schedules(flat, 5) for _, text in schedule}
    known = {(word.core, word.weight) for text in texts for word in host.text.split_words(text)}
    reduced = set(host.model.cond_stage_model.encoded) - texts
    assert reduced
    for text in reduced:
        assert {(word.core, word.weight) for word in host.text.split_words(text)} <= known, text
        assert "style" not in text or "my style" in text  # a textual inversion stays whole or goes
    whole = host.run(job_of_kind(kind, coloured | {"word_threshold": 0.0}, prompt=prompt, steps=5))[0]
    assert far(made, whole) > 1


def test_another_prompt_in_the_hires_pass_uses_the_words_that_both_have(host):
    p = host.text_job(ACC, prompt="a butterfly on red flowers", hr_prompt="red flowers with unseen beetles", steps=4)
    host.run(p)
    reduced = {text for text in host.model.cond_stage_model.encoded if text not in (p.prompt, p.hr_prompt)}
    assert reduced
    for text in reduced:
        assert "with unseen beetles" in text  # no evidence, so they stay everywhere
        assert text != p.hr_prompt


@pytest.mark.parametrize("prompt", ["", "...", "BREAK"])
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_prompts_without_words(host, job_of_kind, kind, prompt):
    p = job_of_kind(kind, ACC, prompt=prompt, steps=3)
    assert host.run(p)
    assert not p.scripts.reports
    assert set(host.model.cond_stage_model.encoded) <= {prompt}


def test_words_that_are_to_be_seen_nowhere_leave_the_whole_prompt(host):
    host.run(host.text_job(ACC | {"word_threshold": 1.0}, prompt="butterfly", steps=3))
    assert set(host.model.cond_stage_model.encoded) == {"butterfly"}


def test_a_first_pass_of_the_host_is_what_it_is_without_listening(host, monkeypatch):
    first = []
    kind = host.sd_samplers_kdiffusion.KDiffusionSampler
    sample = kind.sample
    monkeypatch.setattr(kind, "sample", lambda *args, **more: first.append(sample(*args, **more)) or first[-1])
    host.run(host.text_job(ACC, prompt=PROMPT))
    host.run(host.text_job(ACC | {"word_threshold": 0.0}, prompt=PROMPT))
    assert torch.equal(*first)


def test_maps_show_what_the_target_shows_where_the_host_cuts(host, monkeypatch):
    """A first pass of 128 x 64 whose target is its middle: windows look up the words of the middle."""
    asked = []
    shares = host.windows.window_shares
    monkeypatch.setattr(
        host.windows, "window_shares", lambda masks, windows, size, **more: asked.append((windows, size)) or shares(masks, windows, size, **more)
    )
    host.run(host.text_job(ACC, prompt=PROMPT, width=128, hr_resize_x=128, hr_resize_y=128, steps=3))
    windows, size = asked[0]
    assert size == (16, 32)
    assert min(window.left for window in windows) == 8
    assert max(window.left + window.width for window in windows) == 24


@pytest.mark.parametrize("stop", ["interrupt", "error", "memory"])
def test_nothing_stays_of_a_first_pass_that_does_not_end(host, samplers, stop):
    def on_call():
        if len(host.model.calls) == 2:
            if stop == "interrupt":
                host.shared.state.interrupted = True
            else:
                raise RuntimeError("CUDA out of memory" if stop == "memory" else "broken")

    host.model.on_call = on_call
    p = host.text_job(ACC, prompt=PROMPT)
    if stop == "interrupt":
        host.run(p)
    else:
        with pytest.raises(RuntimeError, match=r"broken|memory"):
            host.run(p)
    assert not hooks(host)
    for sampler in samplers:
        assert type(sampler.model_wrap_cfg).__module__.startswith("modules.")
        assert "sample" not in sampler.__dict__
    host.model.on_call = lambda: None
    assert host.run(host.text_job(ACC, prompt=PROMPT))


def test_conditioning_of_another_making_is_said_and_left_alone(host, monkeypatch):
    made = host.prompt_parser.get_multicond_learned_conditioning
    strange = lambda model, prompts, steps, hires=None: made(model, ["[x:y:1] other"] * len(prompts), steps, hires)  # noqa: E731
    monkeypatch.setattr(host.prompt_parser, "get_multicond_learned_conditioning", strange)
    p = host.text_job(ACC, prompt=PROMPT)
    assert host.run(p)
    assert any("every window has the whole prompt alone" in comment for comment in p.comments)


def test_a_model_whose_attention_cannot_be_seen_is_said(host, monkeypatch):
    monkeypatch.delattr(type(host.model.model.diffusion_model.input_blocks[0].attn2), "heads")
    p = host.text_job(ACC, prompt=PROMPT)
    assert host.run(p)
    assert any("could not be seen" in comment for comment in p.comments)


def test_the_old_emphasis_is_refused_in_a_sentence(host):
    host.shared.opts.use_old_emphasis_implementation = True
    with pytest.raises(ValueError, match="set words per window to 0"):
        host.run(host.text_job(ACC, prompt=PROMPT))
    assert host.run(host.text_job(ACC | {"word_threshold": 0.0}, prompt=PROMPT))


@needs_letters
def test_a_picture_of_the_words_for_every_picture(host):
    settings = ACC | {"draw_words": True}
    p = host.text_job(settings, prompt=PROMPT, batch_size=2, n_iter=2, do_not_save_samples=False)
    host.images.saved.clear()
    made = host.run(p)
    assert len(made) == 8
    assert [one.size for one in made] == [(128, 128)] * 8
    for picture, drawn in zip(made[:4], made[4:], strict=True):
        assert far(picture, drawn) > 50
    assert [one["suffix"] for one in host.images.saved] == ["-apt-words"] * 4
    plain = host.run(host.text_job(ACC, prompt=PROMPT, batch_size=2, n_iter=2))
    assert [far(*pair) for pair in zip(made[:4], plain, strict=True)] == [0] * 4


@needs_letters
def test_labels_stand_in_their_windows(host):
    from apt_ext.core.windows import Window

    windows = [Window(0, 0, 16, 16), Window(0, 16, 16, 16), Window(16, 0, 16, 16), Window(16, 16, 16, 16)]
    grey = Image.new("RGB", (256, 256), (120, 120, 120))
    blank, labelled = host.picture.draw_labels(grey, windows, ["", "", "", ""]), host.picture.draw_labels(grey, windows, ["", "", "", "a butterfly"])
    changed = abs(pixels(blank) - pixels(labelled)).sum(-1) > 0
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    assert rows.min() > 128
    assert columns.min() > 128
    assert changed.sum() > 100


def test_plan_and_words_agree_on_the_steps_whose_windows_are_encoded(host):
    """Where the local path is not evaluated, nothing is encoded for it; elsewhere each text once."""
    prompts, cond = host.windows, object()
    (phase,) = plan_phases((8, 8), (8, 8), (16, 16), "direct")
    left = torch.tensor([[True, False], [True, False]])
    seen = prompts.Seen({(0, "a b"): [(host.text.Word("a", 1.0, False), left), (host.text.Word("b", 1.0, False), ~left)]})
    top, both = [prompts.Window(0, 0, 8, 8)], [prompts.Window(8, 0, 8, 8), prompts.Window(8, 8, 8, 8)]
    encodings = prompts.Encodings()
    made = prompts.WindowPrompts(seen, [[[(2, "a b")]]], 0.5, phase.size, prompts.Crop(0, 0, (8, 8), (8, 8)), None, encodings)
    assert [made.texts(0, "a b", windows) for windows in (top, both)] == [["a"], ["a", "b"]]
    encoded = []
    for evaluated in ([False, False], [True, False], [True, True], [True, True]):
        made.prepare([1, 1], lambda step: (top, both)[step], evaluated, cond)
        encoded.append(list(host.model.cond_stage_model.encoded))
    assert encoded == [[], ["a"], ["a", "b"], ["a", "b"]]
    assert encodings.calls == 2


def test_a_window_without_any_word_of_its_own_keeps_the_whole_prompt(host):
    seen = host.windows.Seen({(0, "a b"): [(host.text.Word("a", 1.0, False), torch.tensor([[True, False]])), (host.text.Word("b", 1.0, False), None)]})
    made = host.windows.WindowPrompts(seen, [[[(2, "a b")]]], 0.5, (8, 16), host.windows.Crop(0, 0, (8, 16), (8, 16)), None, host.windows.Encodings())
    windows = [host.windows.Window(0, 0, 8, 8), host.windows.Window(0, 8, 8, 8)]
    assert made.texts(0, "a b", windows) == ["a b", "a b"]  # the only judged word keeps its place, or the window would be empty
