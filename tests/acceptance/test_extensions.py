"""Other people's extensions, asked of a running WebUI that has them."""

from typing import Any

import numpy as np
import pytest

from tests.acceptance.conftest import Refused, apt

PLAIN = apt(colour_fix=0.0)  # its colours would be the smaller picture's


@pytest.fixture
def installed(webui):
    """(name, {place: value}) -> a script's arguments in a txt2img job, all others as on its page; skips where it is not installed."""
    scripts = {script["name"]: script for script in webui.call("/sdapi/v1/script-info") if not script["is_img2img"]}

    def arguments(name, changed):
        if name not in scripts:
            pytest.skip(f"needs a running WebUI with the extension {name!r}")
        values = [one["value"] for one in scripts[name]["args"]]
        for place, value in changed.items():
            values[place] = value
        return {name: {"args": values}}

    return arguments


@pytest.fixture(autouse=True)
def nothing_left_behind(webui):
    before = webui.txt2img()
    yield
    assert webui.txt2img().same(before), "an ordinary job after this one differs from the one before"


def far(one, other):
    return np.abs(np.asarray(one.picture(), int) - np.asarray(other.picture(), int)).max()


# name, its arguments, what is asked of the job
WORK: dict[str, tuple[str, dict[int, Any], dict[str, Any]]] = {
    "NegPiP": ("negpip", {0: True}, {"prompt": "a leaf, (stone:-1.5)"}),
    "Regional Prompter": ("regional prompter", {0: True}, {"prompt": "a leaf BREAK a stone", "negative_prompt": "blurry BREAK dark"}),
    "Detail Daemon, both": ("detail daemon", {0: True, 1: True, 2: True, 3: "both", 7: 1.0}, {}),
    "Detail Daemon, cond": ("detail daemon", {0: True, 1: True, 2: True, 3: "cond", 7: 1.0}, {}),
    "Detail Daemon, uncond": ("detail daemon", {0: True, 1: True, 2: True, 3: "uncond", 7: 1.0}, {}),
    "Dynamic Thresholding": ("dynamic thresholding (cfg scale fix)", {0: True, 1: 3.0}, {"cfg_scale": 12}),
    "Kohya hires fix": ("kohya hires.fix", {0: True, 1: False, 4: 0.3, 5: 0.5}, {}),
}


@pytest.mark.parametrize("extension", WORK)
def test_it_changes_the_picture_and_any_window_batch_makes_the_same(webui, installed, extension):
    name, changed, asked = WORK[extension]
    beside = installed(name, changed)
    one, many = (webui.hires(**asked, alwayson_scripts=apt(colour_fix=0.0, window_batch=batch) | beside) for batch in (1, 4))
    assert far(one, many) <= 2
    assert far(one, webui.hires(**asked, alwayson_scripts=PLAIN)) > 2
    assert "APT method" in one.text


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("self attention guidance", {0: True}, "self-attention of the whole picture"),
        ("regional prompter", {0: True, 2: "Prompt"}, "mode 'Prompt'"),
    ],
)
def test_what_needs_the_whole_picture_s_attention_is_refused(webui, installed, name, changed, words):
    beside = installed(name, changed)
    with pytest.raises(Refused, match=words) as refused:
        webui.hires(prompt="a leaf on stone BREAK stone, leaf", alwayson_scripts=PLAIN | beside)
    assert refused.value.status == 422
