"""What the API alone cannot ask for: a small extension for the WebUI under test. Link the folder above into its `extensions`.

"APT probe" takes one argument, an object with some of

    count: true, where nothing but the count is wanted
    fail: "error", "memory", "memory once", "cuda memory" or "interrupt", at the model's call number `at`
    inner: "image" or "end": another job inside this one, with its scripts and their arguments, in `postprocess_image` or `postprocess`
    firstpass: a picture by base64, for a job as the gallery's upscale button makes it
    control: true, to note from call to call whether the first of ControlNet's units acts: "0101" where it began twice in the second half

and writes into the infotext how many rows the model was given. "APT probe batch" does as img2img's batch tab: a folder, a scale, what is taken from the
files' PNG info.
"""

import copy
import os
import tempfile

import torch
from modules import img2img, processing, scripts, shared
from modules.api.api import decode_base64_to_image

_hooks = []  # on the U-Net, of the job under way


def _unhooked():
    while _hooks:
        _hooks.pop().remove()


def _fail(kind):
    if kind == "interrupt":
        shared.state.interrupt()
    elif kind == "cuda memory":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    else:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: out of memory" if kind.startswith("memory") else "the probe failed as it was asked to")


class Probe(scripts.Script):
    def title(self):
        return "APT probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio

        return [gradio.JSON(value={}, visible=False)]

    def before_process(self, p, asked=None):
        if asked and "firstpass" in asked:
            p.firstpass_image, p.txt2img_upscale = decode_base64_to_image(asked["firstpass"]).convert("RGB"), True
        if not getattr(p, "apt_probe_inner", False):
            _unhooked()

    def process(self, p, asked=None):
        if not asked or getattr(p, "apt_probe_inner", False):
            return
        rows, calls, acts = [0], [0], []
        units = [script for script in p.scripts.alwayson_scripts if script.title() == "ControlNet"] if asked.get("control") else []

        def count(module, inputs):
            for script in units:
                acting = "0" if script.latest_network.control_params[0].guidance_stopped else "1"
                if acts[-1:] != [acting]:
                    acts.append(acting)
            rows[0] += len(inputs[0])
            calls[0] += 1
            kind, at = asked.get("fail", ""), asked.get("at", 1)
            if kind and (calls[0] == at or (calls[0] > at and kind in ("memory", "cuda memory"))):
                _fail(kind)

        _hooks.append(p.sd_model.model.diffusion_model.register_forward_pre_hook(count))
        p.extra_generation_params["Probe rows"] = lambda **_: rows[0]
        if units:
            p.extra_generation_params["Probe control"] = lambda **_: "acts " + "".join(acts)

    def _inner(self, p, picture):
        size = {"width": picture.width, "height": picture.height, "steps": 4, "denoising_strength": 0.5}
        own = {"seed": 5, "sampler_name": p.sampler_name, "do_not_save_samples": True, "do_not_save_grid": True}
        # As ADetailer does: the outer job's entries of the infotext are the inner one's too.
        shared_ones = {"extra_generation_params": p.extra_generation_params, "override_settings": {}}
        inner = processing.StableDiffusionProcessingImg2Img(init_images=[picture], prompt="a stone", **size, **own, **shared_ones)
        inner.scripts, inner.script_args, inner.apt_probe_inner = copy.copy(p.scripts), p.script_args, True
        processing.process_images(inner)

    def postprocess_image(self, p, pp, asked=None):
        if asked and asked.get("inner") == "image" and not getattr(p, "apt_probe_inner", False):
            self._inner(p, pp.image)

    def postprocess(self, p, processed, asked=None):
        if getattr(p, "apt_probe_inner", False):
            return
        if asked and asked.get("inner") == "end":
            self._inner(p, processed.images[0])
        _unhooked()


class ProbeBatch(scripts.Script):
    def title(self):
        return "APT probe batch"

    def show(self, is_img2img):
        return is_img2img

    def ui(self, is_img2img):
        import gradio

        return [gradio.JSON(value={}, visible=False)]

    def run(self, p, asked=None, *others):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in asked["files"].items():
                picture = decode_base64_to_image(content)
                picture.save(os.path.join(folder, name), **({"pnginfo": _text(picture)} if name.endswith(".png") else {}))
            taken = asked.get("taken")
            how = {"to_scale": True, "scale_by": asked.get("scale", 2), "use_png_info": taken is not None, "png_info_props": taken}
            return img2img.process_batch(p, folder, "", "", [0, *p.script_args[1:]], **how)


def _text(picture):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name in ("parameters",):
        if name in picture.info:
            info.add_text(name, picture.info[name])
    return info
