"""AccDiffusion's prompts per window, asked of a running WebUI with a checkpoint of any family."""

import numpy as np
import pytest

from tests.acceptance.conftest import SIDE, apt

PROMPT = "a castle on a hill, red sky with clouds, a river and (tall trees:1.2)"
WORDS = {"method": "accdiffusion", "word_threshold": 0.5}


@pytest.fixture(autouse=True)
def nothing_left_behind(webui):
    before = webui.txt2img(prompt=PROMPT)
    yield
    assert webui.txt2img(prompt=PROMPT).same(before), "an ordinary job after this one differs from the one before"


def far(one, other):
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).max()


def both(webui, picture, **settings):
    """A hires job and an img2img job."""
    yield webui.hires(prompt=PROMPT, alwayson_scripts=apt(**settings))
    yield webui.img2img(picture, prompt=PROMPT, alwayson_scripts=apt(**settings))


def test_words_per_window_change_the_picture_and_come_again(webui, picture):
    for own, whole, again in zip(*(both(webui, picture, **WORDS | {"word_threshold": words}) for words in (0.5, 0.0, 0.5)), strict=True):
        assert own.picture().size == (2 * SIDE, 2 * SIDE)
        assert "APT word threshold: 0.5" in own.text
        assert not own.same(whole)
        assert own.same(again)


def test_a_picture_of_the_words(webui, picture):
    for made in both(webui, picture, **WORDS, draw_words=True):
        assert len(made.images) == 2
        assert made.picture(1).size == made.picture(0).size
        assert far(made.picture(0), made.picture(1)) > 50


def test_a_batch_is_what_its_pictures_are_alone(webui):
    together = webui.hires(prompt=PROMPT, batch_size=2, alwayson_scripts=apt(**WORDS))
    for index in (0, 1):
        assert (
            far(together.picture(index + len(together.images) - 2), webui.hires(prompt=PROMPT, seed=11 + index, alwayson_scripts=apt(**WORDS)).picture()) <= 2
        )


@pytest.mark.parametrize("optimisation", ["sdp - scaled dot product", "sub-quadratic", "Doggettx", "InvokeAI", "V1 - original v1", "None"])
def test_any_attention_optimisation(webui, optimisation):
    before = webui.call("/sdapi/v1/options")["cross_attention_optimization"]
    reference = webui.hires(prompt=PROMPT, alwayson_scripts=apt(**WORDS, draw_words=True))
    webui.call("/sdapi/v1/options", {"cross_attention_optimization": optimisation})
    try:
        made = webui.hires(prompt=PROMPT, alwayson_scripts=apt(**WORDS, draw_words=True))
    finally:
        webui.call("/sdapi/v1/options", {"cross_attention_optimization": before})
    assert "APT word threshold" in made.text
    assert len(made.images) == 2
    assert far(made.picture(), reference.picture()) <= 16  # each rounds in its own way


@pytest.mark.parametrize(
    "prompt",
    [
        "a castle AND red sky over trees :0.7",
        "a [castle:tower:2] on a hill, red sky",
        "a castle, [red|blue] sky",
        "a castle BREAK red sky",
        "word " * 90 + "sky",
        "",
    ],
)
def test_the_syntax_of_prompts(webui, picture, prompt):
    if webui.inpainting and len(prompt) > 300:
        pytest.skip("the host itself fails there")
    for job in (
        lambda: webui.hires(prompt=prompt, alwayson_scripts=apt(**WORDS)),
        lambda: webui.img2img(picture, prompt=prompt, alwayson_scripts=apt(**WORDS)),
    ):
        made = job()
        assert made.picture().size == (2 * SIDE, 2 * SIDE)
        assert "every window keeps the whole prompt" not in str(made.info)


def test_cond_and_uncond_in_calls_of_their_own(webui):
    together = webui.hires(prompt=PROMPT, alwayson_scripts=apt(**WORDS))
    apart = webui.hires(prompt=PROMPT, override_settings={"batch_cond_uncond": False}, alwayson_scripts=apt(**WORDS))
    assert far(together.picture(), apart.picture()) <= 2


def test_a_hires_prompt_of_its_own_and_a_target_that_is_cut(webui):
    made = webui.hires(
        prompt=PROMPT, hr_prompt="red sky, a castle and birds", hr_resize_x=2 * SIDE, hr_resize_y=SIDE * 3 // 2, alwayson_scripts=apt(**WORDS, draw_words=True)
    )
    assert made.picture().size == made.picture(1).size == (2 * SIDE, SIDE * 3 // 2)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM"])
def test_samplers(webui, sampler):
    made = webui.hires(prompt=PROMPT, sampler_name=sampler, alwayson_scripts=apt(**WORDS))
    assert not made.same(webui.hires(prompt=PROMPT, sampler_name=sampler, alwayson_scripts=apt(**WORDS | {"word_threshold": 0.0})))
