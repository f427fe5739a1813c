"""The controls on the page, made from `CONTROLS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from apt_ext.options import PRESETS, Schedule, settings
from apt_ext.webui.hosts.detect import host
from apt_ext.webui.page.access import KEY
from apt_ext.webui.page.controls import CONTROLS, CUSTOM, STRENGTH, Control, pasted, preset_sentences
from apt_ext.webui.page.request import preset_host_values, preset_values

__all__ = ["build", "component", "paste_functions", "strength_slider", "wire_strength"]


def component(control: Control, value: Any, elem_id: str, choices: Sequence[str] = (), visible: bool = True) -> Any:
    """The gradio component of a control. `choices`: what is offered instead of the control's own."""
    shared = {"label": control.label, "value": value, "elem_id": elem_id, "visible": visible}
    if control.choices and control.free:
        return gr.Dropdown(choices=list(choices or control.choices), allow_custom_value=True, info=control.help, **shared)
    if control.choices:
        return gr.Radio(choices=list(control.choices), **({} if control.name == "preset" else {"info": control.help}), **shared)
    if isinstance(control.default, bool):
        return gr.Checkbox(info=control.help, **shared)
    if isinstance(control.default, str):
        return gr.Textbox(lines=2, placeholder=settings()[control.name].other, info=control.help, **shared)
    return gr.Slider(minimum=control.least, maximum=control.slider, step=control.step, info=control.help, **shared)


def build(
    values: Mapping[str, Any],
    elem_id: Callable[[str], str],
    upscalers: Sequence[str] = (),
    host_upscaler: tuple[Any, Mapping[str, str]] | None = None,
    img2img: bool = True,
) -> tuple[dict[str, Any], Any]:
    """Lay the controls out: the presets and what they come to; all others are folded away.

    Args:
        values: what each shows at first. `elem_id`: name -> the component's id.
        upscalers: what the host offers. `host_upscaler`: the host's own field that decides instead of APT's, which is not shown then, and what
            each preset puts into it.
        img2img: which tab; what means nothing in txt2img is not shown there.

    Returns:
        The components by name, in the order of `CONTROLS`, and the slider of the strength, which is no argument: see `wire_strength`.
    """
    made: dict[str, Any] = {}

    def row(*names: str, visible: bool = True) -> Any:
        with gr.Row(visible=visible) as made_row:
            for name in names:
                control = next(c for c in CONTROLS if c.name == name)
                shown = img2img if name == "own_settings" else name != "upscaler" or host_upscaler is None
                made[name] = component(control, values[name], elem_id(name), upscalers if name == "upscaler" else (), shown)
                # The host keeps what a component showed at its first start and puts it back ever after; the settings page has our defaults.
                made[name].do_not_save_to_config = True
        return made_row

    row("preset")
    gr.HTML(value=_sentences(), elem_classes=["apt-presets"])
    strength = strength_slider(elem_id("strength"))
    # The panel, which the page's script fills.
    gr.HTML(value=f'<div class="apt-key" data-key="{KEY}"></div>', elem_id=elem_id("plan"), elem_classes=["apt-plan"])
    with gr.Accordion("Settings", open=False, elem_id=elem_id("more")):
        _settings(row, made, values)
    ordered = {control.name: made[control.name] for control in CONTROLS}
    _wire_preset(ordered, elem_id("preset"))
    if host_upscaler is not None:
        field, names = host_upscaler
        fill = {"inputs": [made["preset"]], "outputs": [field], "show_progress": False, "queue": False}
        made["preset"].input(fn=lambda preset: gr.update(value=names[preset]) if preset in names else gr.update(), **fill)
    return ordered, strength


def strength_slider(elem_id: str) -> Any:
    """The host's denoising strength, once more where the presets are."""
    slider = gr.Slider(minimum=0.0, maximum=1.0, step=0.01, value=Schedule().strength, label="Strength", info=STRENGTH, elem_id=elem_id)
    slider.do_not_save_to_config = True
    return slider


def wire_strength(ours: Any, hosts: Any) -> None:
    """Keep the slider and the host's own field at one value, whichever is moved. Only a user's hand moves the host's, so nothing goes in circles."""
    ours.value = hosts.value
    ours.input(fn=None, **{host().script: "(strength) => strength"}, inputs=[ours], outputs=[hosts], show_progress=False)
    hosts.change(fn=None, **{host().script: "(strength) => strength"}, inputs=[hosts], outputs=[ours], show_progress=False)


def _sentences() -> str:
    """What each preset is good for. Each text stands by itself, or the host could not translate it."""
    return "".join(f"<div><b>{name}</b>: <span>{text}</span></div>" for name, text in preset_sentences().items())


def _settings(row: Callable[..., Any], made: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Everything that a preset sets, folded away: whoever opens it looks for something."""
    row("regions")
    row("method")
    words = row("word_threshold", "draw_words", visible=values["method"] == "accdiffusion")
    shown = {"inputs": [made["method"]], "outputs": [words], "show_progress": False, "queue": False}
    made["method"].change(fn=lambda method: gr.update(visible=method == "accdiffusion"), **shown)
    row("upscaler", "colour_fix")
    row("phases", "matching")
    row("gamma", "window")
    row("overlap", "jitter")
    row("window_batch")
    row("tiled_vae", "save_phases", "own_settings")
    row("border", "reanchor")
    row("skip_residual", "residual_decay")
    row("dilated_decay", "blur_decay")
    row("blur", "feather")
    row("tolerance")
    row("fill", visible=False)  # for the published methods' own way alone


def _wire_preset(made: Mapping[str, Any], preset_id: str) -> None:
    """A preset fills the rest, and the host's steps and denoising strength where the user sees them; touching the rest makes it a custom one again."""
    filled = [name for name in made if name in preset_values("Quality")]

    def fill(preset: str) -> list[Any]:
        values = preset_values(preset)
        return [gr.update(value=values[name]) if name in values else gr.update() for name in filled]

    made["preset"].input(fn=fill, inputs=[made["preset"]], outputs=[made[name] for name in filled], show_progress=False, queue=False)
    fields = json.dumps({name: preset_host_values(name) for name in PRESETS})
    made["preset"].input(
        fn=None, **{host().script: f"(preset) => aptFillHost('{preset_id}', {fields}[preset])"}, inputs=[made["preset"]], outputs=[], show_progress=False
    )
    for name in filled:
        made[name].input(fn=None, **{host().script: f"() => '{CUSTOM}'"}, inputs=[], outputs=[made["preset"]], show_progress=False)


def paste_functions() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Control name -> how its value is read from a parsed infotext; None leaves it as it is."""
    return {control.name: partial(pasted, control) for control in CONTROLS}
