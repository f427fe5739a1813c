"""The host's own ways of making pictures with APT on, as data: what is asked, and what is to come of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.acceptance.conftest import SIDE, Answer, WebUI, apt, encoded

__all__ = ["NEUTRAL", "WAYS", "Rig", "Way"]

LARGE, THREEFOLD, WIDER, SAME = (2 * SIDE, 2 * SIDE), (3 * SIDE, 3 * SIDE), (SIDE + 64, SIDE + 64), (SIDE, SIDE)
PLAIN = {"method": "multidiffusion"}
EIGHTH = (2 * SIDE // 8, 2 * SIDE // 8)  # which is all that the cheapest approximation draws
FREE = (SIDE * 3 // 2 + 8, SIDE * 2 + 8)
ODD = (3 * SIDE // 4 + 5, SIDE // 2 + 3)
QUICK = {"phases": "direct", "overlap": 0.0, "jitter": 0.0}  # as few windows as can be

# Settings that a job changes and the host does not put back where its configuration lacks them: every job says them.
NEUTRAL = {
    "CLIP_stop_at_last_layers": 1,
    "hypertile_enable_unet": False,
    "hypertile_enable_unet_secondpass": False,
    "hypertile_enable_vae": False,
    "hires_fix_refiner_pass": "second pass",
    "return_mask": False,
    "return_mask_composite": False,
    "img2img_extra_noise": 0,
    "eta_noise_seed_delta": 0,
    "sd_vae_decode_method": "Full",
    "sd_vae_encode_method": "Full",
    "use_old_hires_fix_width_height": False,
    "img2img_color_correction": False,
    "token_merging_ratio": 0,
    "randn_source": "GPU",
    "sigma_max": 0,
}


class Way(NamedTuple):
    """One thing that a user does.

    Attributes:
        what: the row's name. `run`: the job.
        size: of the pictures that come back, where all have one. `number`: of them.
        claims: how many of the infotexts name APT; None for all.
        refused: words of the sentence, where the job is.
        needs: "probe", "lora" or "checkpoints", where the rig has to have it.
    """

    what: str
    run: Callable[..., Answer]
    size: tuple[int, int] | None = LARGE
    number: int = 1
    claims: int | None = None
    refused: str = ""
    needs: str = ""


class Rig:
    """A running WebUI and what the jobs need."""

    def __init__(self, webui: WebUI):
        self.webui = webui
        gradient, round_one = Image.linear_gradient("L").resize((SIDE, SIDE)), Image.radial_gradient("L").resize((SIDE, SIDE))
        self.picture = Image.merge("RGB", (gradient, round_one, gradient.rotate(90)))
        self.scripts = {(one["name"], one["is_img2img"]): one["args"] for one in webui.call("/sdapi/v1/script-info")}

    def hires(self, beside: Any = None, **asked: Any) -> Answer:
        """APT in a hires pass; `beside`: other scripts' arguments."""
        settings = QUICK | asked.pop("apt", {})
        return self.webui.hires(**{"steps": 2, "alwayson_scripts": apt(**settings) | (beside or {})} | asked)

    def img2img(self, beside: Any = None, picture: Any = None, **asked: Any) -> Answer:
        """APT in img2img."""
        settings = QUICK | asked.pop("apt", {})
        return self.webui.img2img(picture or self.picture, **{"steps": 4, "alwayson_scripts": apt(**settings) | (beside or {})} | asked)

    def script(self, name: str, img2img: bool, places: dict[int, Any]) -> dict[str, Any]:
        """A script of the dropdown, its arguments as on its page but for some."""
        values = [one["value"] for one in self.scripts[name, img2img]]
        for place, value in places.items():
            values[place] = value
        return {"script_name": name, "script_args": values}

    def plot(self, img2img: bool, **axes: str) -> dict[str, Any]:
        """The X/Y/Z plot: x, y, z = "label: values"."""
        labels = self.axes(img2img)
        places: dict[int, Any] = {9: False}
        for axis, text in axes.items():
            label, _, values = text.partition(": ")
            at = 3 * "xyz".index(axis)
            places |= {at: labels.index(label), at + 1: values, at + 2: [one.strip() for one in values.split(",")]}
        for at in (0, 3, 6):
            places.setdefault(at, labels.index("Nothing"))
        return self.script("x/y/z plot", img2img, places)

    def axes(self, img2img: bool) -> list[str]:
        """The labels that the plot offers."""
        for one in self.scripts["x/y/z plot", img2img]:
            if one["label"] == "X type":
                return list(one["choices"])
        raise LookupError("X type")

    def mask(self, side: int = SIDE) -> str:
        """A mask whose middle may change."""
        mask = Image.new("L", (side, side), 0)
        mask.paste(255, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
        return encoded(mask)

    def lora(self, name: str, seed: int) -> str:
        """Write a LoRA of random weights for the loaded checkpoint beside the host's; -> its name."""
        flags, models = self.webui.call("/sdapi/v1/cmd-flags"), self.webui.call("/sdapi/v1/sd-models")
        loaded = self.webui.settings.get("sd_model_checkpoint") or self.webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
        (file,) = (one["filename"] for one in models if loaded in (one["title"], one["model_name"], Path(one["filename"]).name))
        write_lora(Path(file), Path(flags["lora_dir"]) / f"{name}.safetensors", seed)
        self.webui.call("/sdapi/v1/refresh-loras", {})
        return name

    def other(self) -> str:
        """Another checkpoint than the loaded one."""
        loaded = self.webui.settings.get("sd_model_checkpoint") or self.webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
        names = [one["title"] for one in self.webui.call("/sdapi/v1/sd-models") if loaded not in (one["title"], one["model_name"])]
        return names[0]

    def refiner(self, where: str) -> dict[str, Any]:
        """A refiner from the middle on, in the passes that the setting names."""
        return {"refiner_checkpoint": self.other(), "refiner_switch_at": 0.5, "override_settings": {"hires_fix_refiner_pass": where}}

    def probe(self, **asked: Any) -> dict[str, Any]:
        """The probe's argument."""
        return {"APT probe": {"args": [asked]}}

    def batch(self, files: dict[str, Image.Image], taken: list[str] | None = None, texts: dict[str, str] | None = None, **asked: Any) -> Answer:
        """The batch tab, to twice the size."""
        content = {}
        for name, picture in files.items():
            info = PngInfo()
            if texts and name in texts:
                info.add_text("parameters", texts[name])
            content[name] = encoded(picture, pnginfo=info)
        return self.img2img(script_name="apt probe batch", script_args=[{"files": content, "taken": taken, "scale": 2}], **asked)


def whole(width: int, height: int) -> tuple[int, int]:
    """The host's own rounding of a size."""
    return (width + 1) // 8 * 8, (height + 1) // 8 * 8


def write_lora(checkpoint: Path, target: Path, seed: int) -> None:
    """A LoRA of rank 4 on the queries and values of every attention of a checkpoint's U-Net, by the names that 1.10.1 itself has for its layers."""
    with checkpoint.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        layers = json.loads(file.read(length))
    random, tensors = np.random.default_rng(seed), {}
    for name, entry in layers.items():
        if name.startswith("model.diffusion_model.") and name.endswith((".to_q.weight", ".to_v.weight")):
            rows, columns = entry["shape"]
            key = "diffusion_model_" + name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = random.standard_normal((4, columns)).astype(np.float32) / columns**0.5
            tensors[f"{key}.lora_up.weight"] = random.standard_normal((rows, 4)).astype(np.float32)
    header, at = {}, 0
    for key, values in tensors.items():
        header[key] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values()))


def _infotext(method: str) -> str:
    numbers = f"Steps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 7, Size: {SIDE}x{SIDE}, Denoising strength: 0.4"
    return f"a stone\n{numbers}, APT method: {method}, APT phases: direct, APT overlap: 0.5, Hires upscale: 2, Hires upscaler: Lanczos"


SCRIPTS = [
    Way("X/Y/Z plot, axes of APT and of the host", lambda r: r.hires(**r.plot(False, x="[APT] Method: multidiffusion, demofusion", y="Steps: 1, 2")), None),
    Way("X/Y/Z plot, APT switched by an axis", lambda r: r.hires(**r.plot(False, x="[APT] On: False, True")), None, claims=1),
    Way("X/Y/Z plot in img2img, presets and strengths", lambda r: r.img2img(**r.plot(True, x="[APT] Preset: Fast, Balanced", y="Denoising: 0.3, 0.6")), None),
    Way("X/Y/Z plot, a value that cannot be (its cell stays empty)", lambda r: r.hires(**r.plot(False, x="[APT] Window overlap: 0.25, 9")), None, claims=2),
    Way("Prompt matrix", lambda r: r.hires(prompt="a leaf|red", **r.script("prompt matrix", False, {})), None, 3),
    Way(
        "Prompts from file or textbox",
        lambda r: r.hires(**r.script("prompts from file or textbox", False, {3: 'a stone\n--prompt "a leaf" --steps 2'})),
        number=2,
    ),
    Way("Loopback", lambda r: r.img2img(**r.script("loopback", True, {0: 2})), None, 3),
    Way("Poor man's outpainting", lambda r: r.img2img(width=SIDE, height=SIDE, **r.script("poor man's outpainting", True, {0: 32})), WIDER),
    Way("Outpainting mk2", lambda r: r.img2img(width=SIDE, height=SIDE, **r.script("outpainting mk2", True, {1: 32})), WIDER),
    Way("SD upscale", lambda r: r.img2img(width=SIDE, height=SIDE, **r.script("sd upscale", True, {1: SIDE // 4, 2: "Lanczos"}))),
    Way("img2img alternative test", lambda r: r.img2img(**r.script("img2img alternative test", True, {6: 4})), claims=0),
    Way("Soft inpainting", lambda r: r.img2img({"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}, mask=r.mask(), inpaint_full_res=False)),
    Way("Hypertile, U-Net", lambda r: r.img2img(override_settings={"hypertile_enable_unet": True})),
    Way("Hypertile, U-Net, second pass alone", lambda r: r.hires(override_settings={"hypertile_enable_unet_secondpass": True})),
    Way("Hypertile, VAE", lambda r: r.hires(override_settings={"hypertile_enable_vae": True})),
    Way("Extra options section", lambda r: r.hires({"Extra options": {"args": []}})),
    Way(
        "A refiner in the hires pass, two phases",
        lambda r: r.hires(**r.refiner("second pass"), hr_scale=3, apt={"phases": "double"}),
        THREEFOLD,
        needs="checkpoints",
    ),
    Way("A refiner in both passes", lambda r: r.hires(**r.refiner("both passes")), needs="checkpoints"),
    Way("A refiner in the first pass", lambda r: r.hires(**r.refiner("first pass")), needs="checkpoints"),
    Way(
        "A refiner in img2img, two phases",
        lambda r: r.img2img(**r.refiner("second pass"), width=3 * SIDE, height=3 * SIDE, apt={"phases": "double"}),
        THREEFOLD,
        needs="checkpoints",
    ),
    Way("A checkpoint of its own for the hires pass", lambda r: r.hires(hr_checkpoint_name=r.other()), needs="checkpoints"),
    Way("A LoRA in the prompt", lambda r: r.hires(prompt=f"a leaf <lora:{r.lora('apt-one', 1)}:1>"), needs="lora"),
    Way("A LoRA in the hires prompt alone", lambda r: r.hires(hr_prompt=f"a leaf <lora:{r.lora('apt-one', 1)}:1>"), needs="lora"),
    Way(
        "Another LoRA in the hires pass",
        lambda r: r.hires(prompt=f"a leaf <lora:{r.lora('apt-one', 1)}:1>", hr_prompt=f"a leaf <lora:{r.lora('apt-two', 2)}:0.5>"),
        needs="lora",
    ),
    Way("A LoRA in img2img", lambda r: r.img2img(prompt=f"a leaf <lora:{r.lora('apt-two', 2)}:1>"), needs="lora"),
]

INNER = [
    Way("A job inside `postprocess_image`, two batches of two", lambda r: r.hires(r.probe(inner="image"), n_iter=2, batch_size=2), number=4, needs="probe"),
    Way("A job inside `postprocess`", lambda r: r.hires(r.probe(inner="end")), needs="probe"),
    Way("A job inside `postprocess_image` of img2img", lambda r: r.img2img(r.probe(inner="image"), n_iter=2), number=2, needs="probe"),
    Way("A job inside `postprocess` of img2img", lambda r: r.img2img(r.probe(inner="end")), needs="probe"),
]

NUMBERS = [
    *(
        Way(f"{name} {value:g} with {sampler}", lambda r, n=name, v=value, s=sampler: r.hires(**{n: v}, sampler_name=s, steps=4))
        for name, value, sampler in (
            ("eta", 0.0, "Euler a"),
            ("eta", 1.0, "DDIM"),
            ("s_churn", 5.0, "Euler"),
            ("s_churn", 100.0, "Heun"),
            ("s_noise", 1.1, "Euler a"),
            ("s_noise", 0.0, "DPM++ 2M SDE"),
            ("s_min_uncond", 3.0, "Euler"),
            ("cfg_scale", 1.0, "Euler"),
            ("cfg_scale", 0.0, "Euler"),
        )
    ),
    Way("eta 2 with DPM2 a", lambda r: r.hires(eta=2.0, sampler_name="DPM2 a", steps=4), refused="cannot be followed"),
    Way(
        "Sigma max 20, above the checkpoint's own levels",
        lambda r: r.hires(override_settings={"sigma_max": 20.0}, scheduler="Karras", denoising_strength=1.0, steps=4),
    ),
    Way("Denoising strength 0, hires", lambda r: r.hires(denoising_strength=0), refused="leaves no step to run"),
    Way("Denoising strength 1e-9, hires", lambda r: r.hires(denoising_strength=1e-9), refused="spreads the steps over a schedule"),
    Way("Denoising strength 1, hires", lambda r: r.hires(denoising_strength=1.0)),
    Way("Denoising strength 0, img2img", lambda r: r.img2img(denoising_strength=0)),
    Way("Denoising strength 1, img2img", lambda r: r.img2img(denoising_strength=1)),
    Way("1 step, hires", lambda r: r.hires(steps=1, hr_second_pass_steps=1)),
    Way("150 steps at strength 0.02, hires", lambda r: r.hires(hr_second_pass_steps=150, denoising_strength=0.02, apt={"method": "multidiffusion"})),
    Way("1 step, img2img", lambda r: r.img2img(steps=1)),
    Way("150 steps at strength 0.02, img2img", lambda r: r.img2img(steps=150, denoising_strength=0.02)),
    Way("Clip skip 2", lambda r: r.hires(override_settings={"CLIP_stop_at_last_layers": 2})),
    *(
        Way(f"Schedule type {name}, 2 steps", lambda r, n=name: r.hires(scheduler=n, steps=2, hr_second_pass_steps=2))
        for name in ("Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta")
    ),
    Way("`initial_noise_multiplier` 1.1", lambda r: r.img2img(initial_noise_multiplier=1.1)),
    Way("Extra noise", lambda r: r.img2img(override_settings={"img2img_extra_noise": 0.05})),
    Way("Noise seed delta with Euler a", lambda r: r.hires(sampler_name="Euler a", override_settings={"eta_noise_seed_delta": 31337})),
    Way("Token merging", lambda r: r.hires(override_settings={"token_merging_ratio": 0.5})),
    Way("`return_mask`", lambda r: r.img2img(mask=r.mask(), override_settings={"return_mask": True, "return_mask_composite": True}), None, 3),
    Way(
        "Variation seed, and seed resized from another size", lambda r: r.hires(subseed=3, subseed_strength=0.3, seed_resize_from_w=64, seed_resize_from_h=192)
    ),
    Way("Decoded by an approximation", lambda r: r.hires(override_settings={"sd_vae_decode_method": "Approx cheap"}), EIGHTH),
    Way("Decoded by an approximation, img2img", lambda r: r.img2img(override_settings={"sd_vae_decode_method": "Approx cheap"}), EIGHTH),
    Way("Colour correction of img2img", lambda r: r.img2img(override_settings={"img2img_color_correction": True})),
    *(
        Way(
            f"`save_images` {saved}, `send_images` {sent}, phases saved {phases}",
            lambda r, s=saved, t=sent, q=phases: r.hires(save_images=s, send_images=t, apt={"save_phases": q}),
            size=LARGE if sent else None,
            number=int(sent),
        )
        for saved in (False, True)
        for sent in (False, True)
        for phases in (False, True)
    ),
    Way(
        "`do_not_save_samples`, `do_not_save_grid`",
        lambda r: r.hires(save_images=True, do_not_save_samples=True, do_not_save_grid=True, batch_size=2),
        None,
        3,  # with the grid
    ),
    Way(
        "`infotext` with other values beside it",
        lambda r: r.webui.txt2img(infotext=_infotext("multidiffusion"), hr_sampler_name="Euler", enable_hr=True, seed=3, steps=2),
    ),
    Way(
        "`infotext` with APT's arguments beside it",
        lambda r: r.webui.txt2img(infotext=_infotext("multidiffusion"), hr_sampler_name="Euler", enable_hr=True, alwayson_scripts=apt(method="demofusion")),
    ),
    Way("`infotext` with a value that cannot be", lambda r: r.webui.txt2img(infotext=_infotext("magic"), hr_sampler_name="Euler"), refused="magic"),
]

SIZES = [
    *(
        Way(f"img2img, resize mode {mode}, another aspect", lambda r, m=mode: r.img2img(resize_mode=m, width=FREE[0], height=FREE[1]), FREE)
        for mode in range(4)
    ),
    Way("img2img, an odd size", lambda r: r.img2img(picture=r.picture.resize(ODD), width=2 * ODD[0] + 1, height=2 * ODD[1] + 1), whole(2 * ODD[0], 2 * ODD[1])),
    Way("img2img, an odd size above 768", lambda r: r.img2img(picture=r.picture.resize((401, 33)), width=777, height=69, apt=PLAIN), (776, 64)),
    Way("img2img, one side under a window", lambda r: r.img2img(picture=r.picture.resize((SIDE, 24)), width=2 * SIDE, height=48), (2 * SIDE, 48)),
    Way("img2img, to a smaller size", lambda r: r.img2img(width=48, height=32), (48, 32)),
    Way("img2img, only masked", lambda r: r.img2img(picture=r.picture.resize(LARGE), mask=r.mask(2 * SIDE), width=FREE[0], height=FREE[0])),
    Way("Hires, one side", lambda r: r.hires(hr_resize_x=FREE[0], hr_resize_y=0), (FREE[0], FREE[0])),
    Way("Hires, both sides of another aspect", lambda r: r.hires(width=SIDE - 8, height=SIDE + 24, hr_resize_x=SIDE, hr_resize_y=SIDE), SAME),
    Way("Hires, one side under a window", lambda r: r.hires(height=SIDE // 2, hr_scale=1.5), (SIDE * 3 // 2, SIDE * 3 // 4)),
    Way("Hires, smaller than the first pass", lambda r: r.hires(hr_scale=0.5), refused="is smaller than"),
    Way("Hires, as large as the first pass", lambda r: r.hires(hr_scale=1), SAME),
    Way("Gallery's button, a picture of the sliders' size", lambda r: r.hires(r.probe(firstpass=encoded(r.picture))), needs="probe"),
    Way("Gallery's button, another picture", lambda r: r.hires(r.probe(firstpass=encoded(r.picture.resize((SIDE + 16, SIDE - 16))))), needs="probe"),
    Way("Gallery's button, a larger picture", lambda r: r.hires(r.probe(firstpass=encoded(r.picture.resize(THREEFOLD)))), refused="smaller", needs="probe"),
    Way(
        "Batch tab, mixed files",
        lambda r: r.batch({"a.png": r.picture, "b.jpg": r.picture.resize(ODD), "c.png": r.picture.convert("L").resize((24, SIDE)), "d.webp": r.picture}),
        None,
        4,
        needs="probe",
    ),
    Way(
        "Batch tab, each file's own settings",
        lambda r: r.batch({"a.png": r.picture, "b.png": r.picture}, ["Prompt"], {"b.png": _infotext("multidiffusion")}, apt={"own_settings": True}),
        number=2,
        needs="probe",
    ),
]

FAILURES = [
    Way("An error in the first pass", lambda r: r.hires(r.probe(fail="error", at=2)), refused="the probe failed", needs="probe"),
    Way("An error in a phase", lambda r: r.hires(r.probe(fail="error", at=4)), refused="the probe failed", needs="probe"),
    Way("An error in img2img", lambda r: r.img2img(r.probe(fail="error", at=2)), refused="the probe failed", needs="probe"),
    Way("Out of memory once, window batch 4", lambda r: r.hires(r.probe(fail="memory once", at=5)), needs="probe"),
    Way("Out of memory for good, by CUDA", lambda r: r.hires(r.probe(fail="cuda memory", at=5)), refused="one window alone", needs="probe"),
    Way("Out of memory for good, by the CPU, img2img", lambda r: r.img2img(r.probe(fail="memory", at=1)), refused="one window alone", needs="probe"),
    Way("Interrupted in the first pass", lambda r: r.hires(r.probe(fail="interrupt", at=2)), None, claims=0, needs="probe"),
    Way("Interrupted in a phase", lambda r: r.hires(r.probe(fail="interrupt", at=6)), needs="probe"),
    Way("Interrupted in img2img", lambda r: r.img2img(r.probe(fail="interrupt", at=3)), needs="probe"),
]

WAYS = {"Scripts and extensions of the host": SCRIPTS, "Jobs inside jobs": INNER, "Numbers and flags": NUMBERS, "Sizes": SIZES, "Jobs that end badly": FAILURES}
