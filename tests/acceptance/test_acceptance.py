"""What a user asks of the extension, asked of a running WebUI."""

import time

import numpy as np
import pytest
from PIL import Image

from tests.acceptance.conftest import SIDE, URL, Refused, WebUI, apt, encoded


def far(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


@pytest.fixture(scope="session")
def ordinary(ordinary_rounds):
    """Ordinary jobs before anything of APT ran: they must come out the same ever after."""
    return ordinary_rounds[0]


def ordinary_jobs(webui):
    picture = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    return [webui.txt2img(), webui.hires(), webui.img2img(picture)]


@pytest.fixture(scope="session")
def ordinary_rounds(webui):
    """Several rounds of the same ordinary jobs, for Forge draws from its VAE's encoder without a seed: its img2img is now one picture, now another."""
    return [ordinary_jobs(webui) for _ in range(4)]


@pytest.fixture(autouse=True)
def nothing_left_behind(webui, ordinary, request):
    yield
    if "leaves" in request.keywords:
        return
    assert webui.txt2img().same(ordinary[0]), "an ordinary job after this one differs from the one before"


def test_hires_makes_another_picture_than_the_ordinary_pass(webui, ordinary):
    made = webui.hires(alwayson_scripts=apt(phases="direct"))
    assert made.picture().size == (2 * SIDE, 2 * SIDE)
    assert not made.same(ordinary[1])
    assert made.same(webui.hires(alwayson_scripts=apt(phases="direct")))
    for name in ("APT method: demofusion", "APT overlap: 0.25", "APT phases: direct", "Hires upscale: 2"):
        assert name in made.text


def test_hires_at_four_times_the_size_and_not_square(webui):
    made = webui.hires(hr_scale=4, width=SIDE, height=SIDE // 2 * 3, steps=2, alwayson_scripts=apt(phases="double", overlap=0.25))
    assert made.picture().size == (4 * SIDE, 6 * SIDE)


def test_hires_to_a_size_that_the_host_crops(webui):
    made = webui.hires(hr_resize_x=2 * SIDE, hr_resize_y=SIDE * 3 // 2, alwayson_scripts=apt())
    assert made.picture().size == (2 * SIDE, SIDE * 3 // 2)


def test_hires_through_a_pixel_upscaler(webui):
    through_pixels, as_latents = (webui.hires(hr_upscaler=name, alwayson_scripts=apt()) for name in ("Lanczos", "Latent"))
    assert through_pixels.picture().size == as_latents.picture().size == (2 * SIDE, 2 * SIDE)
    assert not through_pixels.same(as_latents)


def test_without_an_upscaler_of_the_caller_s_apt_s_own_is_taken_and_named(webui):
    by_default, named = webui.hires(hr_upscaler=None, alwayson_scripts=apt()), webui.hires(hr_upscaler="Lanczos", alwayson_scripts=apt())
    assert by_default.same(named)
    assert "Hires upscaler: Lanczos" in by_default.text
    assert "APT upscaler" not in by_default.text
    own = webui.hires(hr_upscaler="None", alwayson_scripts=apt(upscaler="bicubic"))
    assert "APT upscaler: bicubic" in own.text
    assert not own.same(named)


def test_img2img_by_every_kind_of_upscaler(webui, picture):
    made = {name: webui.img2img(picture, alwayson_scripts=apt(upscaler=name)) for name in ("lanczos", "bicubic", "latent", "Nearest")}
    for name, one in made.items():
        assert f"APT upscaler: {name}" in one.text
        assert one.picture().size == (2 * SIDE, 2 * SIDE)
        assert not any(one.same(other) for key, other in made.items() if key != name)
    setting = {"upscaler_for_img2img": "Nearest"}
    again = webui.img2img(picture, alwayson_scripts=apt(), override_settings=setting)
    assert far(again.picture(), made["lanczos"].picture()) <= 2, "the host's own setting reached APT"


def test_an_unknown_upscaler_is_refused(webui, picture):
    for run in (
        lambda: webui.img2img(picture, alwayson_scripts=apt(upscaler="Magic")),
        lambda: webui.txt2img(script_name="APT upscale", script_args=[{"upscaler": "Magic"}]),
    ):
        with pytest.raises(Refused, match="upscaler 'Magic' does not exist; use one of lanczos, bicubic, latent") as refused:
            run()
        assert refused.value.status == 422


def test_odd_sizes_are_made_as_the_host_makes_them(webui, picture):
    odd = picture.resize((SIDE - 1, SIDE - 27))
    size = (7 * odd.width, 7 * odd.height)
    made = webui.img2img(odd, width=size[0], height=size[1], steps=4, denoising_strength=0.3, alwayson_scripts=apt(method="multidiffusion"))
    assert made.picture().size == (size[0] // 8 * 8, size[1] // 8 * 8)


def test_the_colour_fix_brings_the_given_picture_s_colours_back(webui, picture):
    def shift(width):
        small = webui.img2img(picture, denoising_strength=0.3, alwayson_scripts=apt(colour_fix=width)).picture().resize(picture.size, Image.Resampling.BOX)
        return np.abs((np.asarray(small, float) - np.asarray(picture, float)).mean(axis=(0, 1))).max()

    assert shift(4.0) < max(2.0, 0.5 * shift(0.0))


@pytest.mark.parametrize("sampler", ["UniPC", "DPM fast", "DPM adaptive", "Restart"])
def test_samplers_with_steps_of_their_own_work_without_a_skip_residual(webui, sampler):
    for settings in ({"method": "multidiffusion"}, {"skip_residual": False}):
        made = webui.hires(sampler_name=sampler, steps=6, alwayson_scripts=apt(**settings))
        assert made.picture().size == (2 * SIDE, 2 * SIDE)
        assert np.asarray(made.picture()).std() > 1
    with pytest.raises(Refused, match="turn the skip residual off"):
        webui.hires(sampler_name=sampler, steps=6, alwayson_scripts=apt())


def test_img2img(webui, picture, ordinary):
    made = webui.img2img(picture, alwayson_scripts=apt())
    assert made.picture().size == (2 * SIDE, 2 * SIDE)
    assert "APT method" in made.text
    assert not made.same(webui.img2img(picture))


def test_img2img_with_another_resize_mode_and_aspect(webui, picture):
    for mode in (1, 2) if webui.inpainting else (1, 2, 3):
        assert webui.img2img(picture, resize_mode=mode, width=2 * SIDE, height=3 * SIDE, alwayson_scripts=apt()).picture().size == (2 * SIDE, 3 * SIDE)


@pytest.mark.parametrize("fill", [0, 1, 2, 3])
@pytest.mark.parametrize("only_masked", [False, True])
def test_a_mask_keeps_the_rest_of_the_picture(webui, picture, fill, only_masked):
    large = picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    mask = Image.new("L", large.size, 0)
    mask.paste(255, (SIDE // 2, SIDE // 2, SIDE, SIDE))
    asked = {"mask": encoded(mask), "inpainting_fill": fill, "inpaint_full_res": only_masked, "mask_blur": 0}
    made = webui.img2img(large, **asked, alwayson_scripts=apt())
    assert made.picture().size == large.size
    outside = np.asarray(mask) == 0
    assert np.abs(np.asarray(made.picture(), float) - np.asarray(large, float))[outside].max() <= 2
    assert np.abs(np.asarray(made.picture(), float) - np.asarray(large, float))[~outside].mean() > 2


def test_the_dropdown_entry_turns_the_pass_on(webui, picture):
    named = webui.txt2img(script_name="APT upscale", script_args=[{"scale": 2, "preset": "Fast"}])
    assert named.picture().size == (2 * SIDE, 2 * SIDE)
    assert "APT method: multidiffusion" in named.text
    assert f"Hires upscaler: {webui.lanczos}" in named.text
    assert webui.img2img(picture, script_name="APT upscale", script_args=[{"scale": 3, "phases": "direct"}], steps=4).picture().size == (3 * SIDE, 3 * SIDE)


def test_arguments_in_order_are_the_same_as_by_name(webui):
    by_name = webui.hires(alwayson_scripts=apt(method="multidiffusion", phases="direct"))
    in_order = webui.hires(alwayson_scripts={"APT": {"args": [True, "Custom", "multidiffusion", "direct"]}})
    assert in_order.same(by_name)


def test_a_batch_is_what_its_pictures_are_alone(webui):
    batch = webui.hires(batch_size=2, n_iter=2, alwayson_scripts=apt())
    pictures = batch.images[-4:]
    assert len(pictures) == 4
    for index, image in enumerate(pictures):
        alone = webui.hires(seed=11 + index, alwayson_scripts=apt())
        shown = batch.picture(len(batch.images) - 4 + index)
        # The model itself may round differently for another batch size.
        assert np.abs(np.asarray(shown, int) - np.asarray(alone.picture(), int)).max() <= 2, (index, len(image))


@pytest.mark.parametrize("method", ["multidiffusion", "demofusion", "accdiffusion"])
def test_the_window_batch_does_not_change_the_picture(webui, method):
    one, many = (webui.hires(alwayson_scripts=apt(method=method, window_batch=n)).picture() for n in (1, 16))
    assert np.abs(np.asarray(one, int) - np.asarray(many, int)).max() <= 2


def test_the_infotext_makes_the_same_picture_again(webui, picture):
    settings = {"method": "accdiffusion", "phases": "1.5,2", "matching": 0.5, "gamma": -0.25, "overlap": 0.25, "jitter": 0.5, "residual_decay": 2.0}
    settings |= {
        "dilated_decay": 1.5,
        "blur_decay": 2.0,
        "blur": 0.5,
        "border": "over",
        "fill": "zero",
        "feather": 0.3,
        "tolerance": 0.02,
        "reanchor": "on",
        "tiled_vae": False,
    }
    settings |= {"skip_residual": False, "colour_fix": 2.0}
    # Forge and Neo read a list from every infotext and fail in comparing it with its type.
    without = webui.outcome(lambda: webui.job("/sdapi/v1/txt2img", {}, {"infotext": webui.txt2img().text}))
    if isinstance(without, Refused) and "parameterized generic" in str(without.body):
        pytest.skip("the API of this host cannot read the infotext of an ordinary job either; its page can")
    made = webui.hires(hr_second_pass_steps=3, subseed=3, subseed_strength=0.2, alwayson_scripts=apt(**settings))
    # The host's API reads "Use same sampler" from the infotext and then refuses it, so that one is named.
    same = {"hr_sampler_name": "Euler", "hr_scheduler": "Automatic"}
    again = webui.job("/sdapi/v1/txt2img", {}, {"infotext": made.text} | same)
    assert again.text == made.text
    assert again.same(made)
    plain = webui.hires(alwayson_scripts=apt(gamma=0.5, blur=2.0))
    assert webui.job("/sdapi/v1/txt2img", {}, {"infotext": plain.text} | same).same(plain)
    own = webui.hires(hr_upscaler="None", alwayson_scripts=apt(upscaler="bicubic"))
    assert webui.job("/sdapi/v1/txt2img", {}, {"infotext": own.text} | same).same(own)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gama": 1}, "gama"),
        ({"gamma": 30}, "(gamma) 30"),
        ({"method": "magic"}, "magic"),
        ({"overlap": "much"}, "much"),
        ({"preset": "Best"}, "Best"),
        ({"tiled_vae": "False"}, "Tiled VAE"),
        ({"phases": "3,2"}, "3,2"),
        ({"phases": "7"}, "7"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(webui, settings, words):
    with pytest.raises(Refused) as refused:
        webui.hires(alwayson_scripts=apt(**settings))
    assert refused.value.status == 422
    assert refused.value.sentence.startswith("APT: ")
    assert words in refused.value.sentence


def test_bad_scales_of_the_dropdown_entry_are_refused(webui):
    for scale in (0.5, 100, "two", None, True):
        with pytest.raises(Refused, match="scale") as refused:
            webui.txt2img(script_name="APT upscale", script_args=[{"scale": scale}])
        assert refused.value.status == 422


def test_without_hires_fix_the_api_says_so(webui):
    with pytest.raises(Refused, match="enable_hr"):
        webui.txt2img(alwayson_scripts=apt())


@pytest.fixture
def tiling(webui):
    """Skips where the host's own Tiling does nothing, after APT has refused it there."""
    if webui.txt2img(tiling=True).same(webui.txt2img()):
        with pytest.raises(Refused, match="Tiling is on, but this host has left the checkpoint as it is"):
            webui.hires(tiling=True, alwayson_scripts=apt())
        pytest.skip("Tiling does nothing in this host, and APT refuses it there")


@pytest.mark.usefixtures("tiling")
def test_the_sides_of_a_picture_with_tiling_meet(webui):
    made = np.asarray(webui.hires(tiling=True, alwayson_scripts=apt()).picture().convert("RGB"), dtype=float)
    steps = np.abs(made - np.roll(made, 1, 1)).mean((0, 2))
    assert steps[0] <= steps[1:].max()


@pytest.mark.usefixtures("tiling")
def test_a_part_of_a_picture_with_tiling_is_refused(webui):
    if webui.upscaler == "None":
        pytest.skip("this host stretches a hires pass of another aspect and cuts nothing off")
    with pytest.raises(Refused, match="no longer meet"):
        webui.hires(tiling=True, hr_resize_x=2 * SIDE, hr_resize_y=SIDE * 3 // 2, alwayson_scripts=apt())


def _samplers():
    return [one["name"] for one in WebUI().call("/sdapi/v1/samplers")] if URL else ["none"]


def _schedules():
    if not URL:
        return ["none"]
    try:
        return [one["label"] for one in WebUI().call("/sdapi/v1/schedulers")]
    except Refused:  # Classic has them in the names of its samplers
        return ["Automatic"]


@pytest.mark.parametrize("schedule", _schedules())
@pytest.mark.parametrize("sampler", _samplers())
def test_every_sampler_and_schedule_works_or_is_refused(webui, sampler, schedule):
    asked = {"sampler_name": sampler, "scheduler": schedule, "steps": 5, "hr_scale": 1.5, "denoising_strength": 0.7}
    made = webui.outcome(lambda: webui.hires(**asked, alwayson_scripts=apt()))
    if isinstance(made, Refused):
        assert made.status == 422, made
        assert made.sentence.startswith("APT: sampler ")
        return
    assert made.picture().size == (SIDE * 3 // 2,) * 2
    assert np.asarray(made.picture()).std() > 1
    assert not made.same(webui.hires(**asked)), "the ordinary picture came out"


def test_progress_runs_once_from_nothing_to_all(webui):
    job = {"steps": 8, "hr_scale": 3, "alwayson_scripts": apt(window_batch=1, phases="progressive")}
    thread, results, seen = webui.in_background(lambda: webui.hires(**job))
    while thread.is_alive():
        at = webui.progress()
        seen.append((at["progress"], at["textinfo"] or ""))
        time.sleep(0.05)
    assert results[0].picture().size == (3 * SIDE, 3 * SIDE)
    running = [(done, text) for done, text in seen if text.startswith("APT phase")]
    assert {text for _, text in running} >= {f"APT phase 1/2 {2 * SIDE}x{2 * SIDE}", f"APT phase 2/2 {3 * SIDE}x{3 * SIDE}"}
    done = [value for value, _ in running]
    assert done == sorted(done)
    assert done[-1] > 0.9
    assert len(set(done)) > 10


@pytest.mark.parametrize("phase", [1, 2])
def test_interrupt_gives_the_best_picture_so_far_at_the_target_size(webui, phase):
    thread, results, _ = webui.in_background(lambda: webui.hires(steps=60, hr_scale=3, alwayson_scripts=apt(window_batch=1, phases="double")))
    while not (webui.progress()["textinfo"] or "").startswith(f"APT phase {phase}/2"):
        assert thread.is_alive(), results
        time.sleep(0.02)
    asked = time.monotonic()
    webui.call("/sdapi/v1/interrupt", {})
    thread.join()
    assert time.monotonic() - asked < 60
    assert results[0].picture().size == (3 * SIDE, 3 * SIDE)
    assert np.asarray(results[0].picture()).std() > 1


def test_skip_goes_on_with_the_next_picture(webui):
    thread, results, _ = webui.in_background(lambda: webui.hires(steps=20, n_iter=2, alwayson_scripts=apt(window_batch=1)))
    while not (webui.progress()["textinfo"] or "").startswith("APT phase"):
        assert thread.is_alive(), results
        time.sleep(0.02)
    webui.call("/sdapi/v1/skip", {})
    thread.join()
    assert len(results[0].images) >= 2
    whole = webui.hires(steps=20, seed=12, alwayson_scripts=apt(window_batch=1))
    assert np.abs(np.asarray(results[0].picture(-1), int) - np.asarray(whole.picture(), int)).max() <= 2


def test_prompts_of_every_kind_run(webui):
    long = ", ".join(f"leaf {k}" for k in range(60))
    for prompt, negative in (
        (long, "blurry"),
        ("a leaf", long),
        ("a leaf AND a stone :0.5", ""),
        ("[a leaf:a stone:0.5] (red:1.3)", "blurry"),
        ("a BREAK b", ""),
    ):
        made = webui.hires(prompt=prompt, negative_prompt=negative, alwayson_scripts=apt())
        assert made.picture().size == (2 * SIDE, 2 * SIDE)
    apart = webui.hires(alwayson_scripts=apt(), override_settings={"batch_cond_uncond": False})
    together = webui.hires(alwayson_scripts=apt())
    assert np.abs(np.asarray(apart.picture(), int) - np.asarray(together.picture(), int)).max() <= 2
    if not webui.inpainting:
        assert webui.hires(s_min_uncond=2.0, alwayson_scripts=apt()).picture().size == (2 * SIDE, 2 * SIDE)


def test_the_plan_counts_what_the_panel_shows(webui):
    webui.txt2img()
    asked = {
        "img2img": False,
        "first": [512, 512],
        "target": [2048, 2048],
        "steps": 20,
        "hires_steps": 0,
        "denoising": 0.6,
        "sampler": "Euler",
        "scheduler": "Automatic",
    }
    answer = webui.call("/apt/plan", asked | {"settings": {"phases": "double"}})
    assert [phase["size"] for phase in answer["phases"]] == [[1024, 1024], [2048, 2048]]
    assert answer["evaluations"] == sum(phase["evaluations"] for phase in answer["phases"])
    assert answer["demofusion"] > answer["evaluations"]
    assert "error" in webui.call("/apt/plan", asked | {"settings": {"gamma": 30}})


def test_ordinary_jobs_of_every_kind_are_bit_identical_afterwards(webui, ordinary_rounds):
    for before, after in zip(zip(*ordinary_rounds, strict=True), zip(*(ordinary_jobs(webui) for _ in range(4)), strict=True), strict=True):
        steady = all(one.same(before[0]) for one in before)
        assert (all if steady else any)(one.same(other) for one in after for other in before)
        assert max(far(one.picture(), other.picture()) for one in after for other in before) <= 1
