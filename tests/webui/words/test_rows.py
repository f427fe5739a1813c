"""What each row of a model call is told where the conditioning is SDXL's: a sequence, and a vector that begins with the pooled prompt."""

from types import SimpleNamespace

import pytest
import torch

from apt_ext.core.conditioning import ViewBatch, condition_views
from apt_ext.core.types import Size

pytestmark = pytest.mark.usefixtures("settings_page")
LEFT = torch.tensor([[True, False]])


@pytest.fixture
def encoded(host, monkeypatch):
    """Text -> its conditioning by an SDXL checkpoint, of two tokens, where the whole prompt has three."""
    monkeypatch.setattr(host.model, "is_sdxl", True)
    pooled = host.adapter("model").POOLED
    made = {
        text: {"crossattn": torch.full((1, 2, 4), value) + torch.tensor([[[0.0], [0.5]]]), "vector": torch.full((1, pooled + 6), value)}
        for text, value in (("a", 2.0), ("b", 3.0))
    }
    monkeypatch.setattr(host.model, "get_learned_conditioning", lambda texts: made[texts[0]])
    return made


@pytest.fixture
def prompts(host):
    """A window on the left keeps "a", one on the right "b"; the call has a row with the prompt and one without."""
    seen = host.windows.Seen({(0, "a b"): [(host.text.Word("a", 1.0, False), LEFT), (host.text.Word("b", 1.0, False), ~LEFT)]})
    sampler = SimpleNamespace(sampler_extra_args={"cond": SimpleNamespace(batch=[["a b"]])})
    rows = host.seen.PromptRows(SimpleNamespace(sampler=sampler, step=0))
    crop = host.windows.Crop(0, 0, Size(8, 16), Size(8, 16))
    made = host.windows.WindowPrompts(seen, [[[(2, "a b")]]], 0.5, Size(8, 16), crop, rows, host.windows.Encodings())
    made.next_call(2)
    return made


@pytest.mark.parametrize("marks", [0, 1], ids=["", "ControlNet's mark in front"])
def test_sequence_and_pooled_prompt_are_the_windows_own_and_the_rest_stays(host, prompts, encoded, marks):
    pooled = host.adapter("model").POOLED
    cond = {"crossattn": torch.randn(2, 77 + marks, 4), "vector": torch.randn(2, pooled + 6)}
    cond["crossattn"][:, :marks] = -1024.0
    windows = (host.windows.Window(0, 0, 8, 8), host.windows.Window(0, 8, 8, 8))
    batch = ViewBatch(Size(8, 16), 2, windows=windows)
    told = prompts.condition(condition_views)({"cond": cond}, batch)["cond"]
    plain = condition_views({"cond": cond}, batch)["cond"]
    for row, text in ((0, "a"), (1, "b")):
        sequence = encoded[text]["crossattn"][0]
        assert torch.equal(
            told["crossattn"][row], torch.cat([plain["crossattn"][row, :marks], sequence, sequence[-1:].expand(75, 4)])
        )  # as long as the whole prompt's
        assert torch.equal(told["vector"][row, :pooled], encoded[text]["vector"][0, :pooled])
    for name in ("crossattn", "vector"):
        assert torch.equal(told[name][2:], plain[name][2:]), "the rows of the negative prompt"
    assert torch.equal(told["vector"][:, pooled:], plain["vector"][:, pooled:]), "sizes and crop corner"


def test_a_window_that_sees_all_words_keeps_the_whole_prompt(host, prompts, encoded):
    cond = {"crossattn": torch.randn(2, 3, 4), "vector": torch.randn(2, host.adapter("model").POOLED + 6)}
    batch = ViewBatch(Size(8, 16), 2, windows=(host.windows.Window(0, 4, 8, 8),))
    told = prompts.condition(condition_views)({"cond": cond}, batch)["cond"]
    assert all(torch.equal(told[name], cond[name]) for name in cond)
    assert prompts.encoded.calls == 0
