"""APT on the page and in the API: the accordion, and the entry of the Scripts dropdown."""

from __future__ import annotations

from typing import Any

from modules import processing, scripts
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

from apt_ext.options import PRESETS, Schedule
from apt_ext.webui.claims import check_ran, forget_infotext
from apt_ext.webui.errors import refuse
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.job import attach, detach
from apt_ext.webui.latents.colour import fix_colours
from apt_ext.webui.latents.upscalers import choices, host_name
from apt_ext.webui.model import FACTOR
from apt_ext.webui.page.accordion import build, component, paste_functions, wire_strength
from apt_ext.webui.page.axes import overrides_of
from apt_ext.webui.page.controls import ACCORDION, CONTROLS, SCALE
from apt_ext.webui.page.own import own_values
from apt_ext.webui.page.request import Request, flag, named, parse, preset_host_values, replaced
from apt_ext.webui.page.settings import default_values
from apt_ext.webui.sampling import decode_samples, install
from apt_ext.webui.state import Beside, job_of
from apt_ext.webui.words.passes import draw_words, show_drawn

__all__ = ["APTScript", "APTUpscaleScript"]

HOST_UPSCALER = "txt2img_hr_upscaler"
HOST_STRENGTH = ("txt2img_denoising_strength", "img2img_denoising_strength")
TITLE = "APT"
asked_of: Beside[Request | Exception] = Beside()  # a processing object: what is attached to it, once others have sent it where they will


class _WithStrength(scripts.Script):
    """A strength of its own on the page, tied to the host's."""

    host_strength: Any = None
    strength: Any = None

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Keep the host's strength."""
        if kwargs.get("elem_id") in HOST_STRENGTH:
            self.host_strength = component
            self.wire()

    def wire(self) -> None:
        """Tie the two together, as soon as both are on the page."""
        if self.host_strength is not None and self.strength is not None:
            wire_strength(self.strength, self.host_strength)


class APTScript(_WithStrength):
    """The accordion "APT upscaling", next to Hires. fix in txt2img and in img2img."""

    section = "accordions"
    create_group = False
    host_upscaler: Any = None

    def title(self) -> str:
        """The name, also in the API."""
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        """In both tabs, always."""
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Keep the host's fields that a preset fills."""
        super().after_component(component, **kwargs)
        if kwargs.get("elem_id") == HOST_UPSCALER:
            self.host_upscaler = component

    def ui(self, is_img2img: bool) -> list[Any]:
        """The accordion's components, in the order of the API's arguments."""
        field = None if self.host_upscaler is None else (self.host_upscaler, _preset_upscalers())
        with InputAccordion(False, label=ACCORDION, elem_id=self.elem_id("enable")) as enabled:
            made, self.strength = build(default_values(), self.elem_id, choices(), field, is_img2img)
        self.wire()
        read = paste_functions()
        self.infotext_fields = [
            PasteField(enabled, lambda d: "APT method" in d),
            *(PasteField(component, read[name]) for name, component in made.items()),
        ]
        self.paste_field_names = [control.infotext for control in CONTROLS if control.infotext]
        return [enabled, *made.values()]

    def before_process(self, p: Any, enabled: Any = False, *args: Any) -> None:
        """Read what is asked, where APT is on; what is wrong with it is raised later, where the host lets it through."""
        detach(p)
        asked_of.pop(p)
        forget_infotext(p)
        overrides = overrides_of(p)
        on = overrides.pop("enabled", None)
        if isinstance(enabled, dict):
            enabled, args = enabled.get("enabled", True), ({k: v for k, v in enabled.items() if k != "enabled"},)
        try:
            if not _is_on(enabled, on):
                return
            request = parse(args, default_values())
            own = own_values(p.init_images[0]) if request.own_settings and getattr(p, "init_images", None) else {}
            asked_of.put(p, replaced(replaced(request, own), overrides))
        except Exception as error:  # anything else than a good request has to stop the job, and this callback must not raise
            asked_of.put(p, error)

    def process(self, p: Any, *args: Any) -> None:
        """Attach the job; ControlNet's batches run one object from here on several times."""
        if (asked := asked_of.get(p)) is not None:
            attach(p, asked)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """The pass begins: its sampler is ready."""
        if job_of(p) is not None:
            install(p)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        """Img2img's latents are finished; decode large ones in tiles."""
        if job_of(p) is not None:
            check_ran(p)
            ps.samples = decode_samples(p, ps.samples)

    def postprocess_batch(self, p: Any, *args: Any, images: Any = None, **kwargs: Any) -> None:
        """A batch is decoded: (B, 3, H, W) in 0..1, before anything is saved or laid over it."""
        fix_colours(p, images)

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        """One of the pictures is finished, before masks and colours of the given picture are laid over it."""
        draw_words(p, pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """The job is over."""
        show_drawn(p, processed)
        detach(p)


class APTUpscaleScript(_WithStrength):
    """The entry "APT upscale" of the Scripts dropdown: the same, with a scale of its own."""

    def title(self) -> str:
        """The name, also in the API."""
        return "APT upscale"

    def ui(self, is_img2img: bool) -> list[Any]:
        """The scale, then the accordion's controls."""
        scale = component(SCALE, SCALE.default, self.elem_id("scale"))
        made, self.strength = build(default_values(), self.elem_id, choices(), img2img=is_img2img)
        self.wire()
        return [scale, *made.values()]

    def run(self, p: Any, *args: Any) -> Any:
        """Turn the pass on by itself, at the scale, and let the host process as ever."""
        try:
            scale, request = _upscale_request(args)
            _set_size(p, scale, request)
        except ValueError as error:
            refuse(p, error)
        _ask_accordion(p, request)
        return processing.process_images(p)


def _is_on(enabled: Any, override: Any) -> bool:
    """The accordion's own switch, or what the X/Y/Z plot wants of it."""
    return enabled is not None and flag("enabled", enabled) if override is None else flag("[APT] On", override)


def _ask_accordion(p: Any, request: Request) -> None:
    """Put a request among the arguments of the accordion's script, where also those look who pass a job on."""
    (script,) = (one for one in p.scripts.alwayson_scripts if one.title() == TITLE)
    args = list(p.script_args)
    args[script.args_from : script.args_to] = [{"enabled": True} | named(request), *[None] * (script.args_to - script.args_from - 1)]
    p.script_args = type(p.script_args)(args)


def _preset_upscalers() -> dict[str, str]:
    """Preset -> what the host's field "Upscaler" has to say."""
    return {name: host_name(preset_host_values(name)["upscaler"]) for name in PRESETS}


def _upscale_request(args: tuple[Any, ...]) -> tuple[float, Request]:
    if args and isinstance(args[0], dict):
        # The host fills up with other scripts' arguments behind a single dict.
        named = dict(args[0])
        scale: Any = named.pop("scale", SCALE.default)
        rest: tuple[Any, ...] = (named,)
    else:
        scale, rest = (args[0], args[1:]) if args else (SCALE.default, ())
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not SCALE.least <= scale <= SCALE.most:
        raise ValueError(f"scale {scale!r} is out of range; use a number from {SCALE.least:g} to {SCALE.most:g}")
    return float(scale), parse(rest, default_values())


def _set_size(p: Any, scale: float, request: Request) -> None:
    if isinstance(p, processing.StableDiffusionProcessingTxt2Img):
        p.enable_hr, p.hr_scale, p.hr_resize_x, p.hr_resize_y = True, scale, 0, 0
        if p.denoising_strength is None:  # the API's default
            p.denoising_strength = Schedule().strength
        p.hr_upscaler = host_name(request.options.upscaler)
        host().hires_as_first(p)
        return
    if p.image_mask is not None and p.inpaint_full_res:
        width, height = p.width, p.height
    else:
        width, height = p.init_images[0].size
    # Halves up, as the page's script does it.
    p.width, p.height = (max(FACTOR, int(side * scale / FACTOR + 0.5) * FACTOR) for side in (width, height))
