"""The accordion and its panel in a browser, with the gradio of the host.

    pip install gradio==3.41.2 playwright, and a Chromium that playwright finds or CHROMIUM names

Everything below the browser is real but the server's answer, which is a plan of a fixed layout.
"""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio", reason="needs gradio 3.41.2, the host's")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if not gr.__version__.startswith("3.41"):
    pytest.skip(f"needs gradio 3.41, the host's, not {gr.__version__}", allow_module_level=True)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("needs a Chromium; CHROMIUM names one", allow_module_level=True)

from tests.host.double import HERE  # noqa: E402

sys.path.append(str(HERE))  # for `modules`, which says which host this is; gradio is the real one

from apt_ext.options import PRESETS  # noqa: E402
from apt_ext.webui.page.accordion import build, wire_strength  # noqa: E402
from apt_ext.webui.page.controls import CONTROLS, defaults  # noqa: E402
from apt_ext.webui.page.request import parse, preset_values  # noqa: E402

ROOT = Path(__file__).parents[3]
PREFIX = "script_txt2img_apt_"
# What the host's own JavaScript offers to extensions.
HOST = """
window.gradioApp = () => document;
window.onUiLoaded = (run) => run();
window.onAfterUiUpdate = () => {};
window.updateInput = (input) => input.dispatchEvent(new Event("input", {bubbles: true}));
"""
PHASE = {"size": [1024, 1024], "windows": 9, "dilated": 4, "steps": 20, "evaluations": 260}
PLAN = {
    "start": [512, 512],
    "denoising": 0.6,
    "phases": [PHASE],
    "evaluations": 260,
    "seconds": 130.0,
    "memory": 3174,
    "gpu": True,
    "demofusion": 520,
    "plain": 80,
    "notes": ["A <Latent> upscaler"],
    "drawing": {"size": [1024, 1024], "windows": [[0, 0, 512, 512], [256, 0, 512, 512], [512, 512, 512, 512]]},
}


@pytest.fixture(scope="module")
def server():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with gr.Blocks() as page:
        gr.Checkbox(True, interactive=True, elem_id="txt2img_hr-checkbox")
        gr.Checkbox(True, interactive=True, elem_id=PREFIX + "enable-checkbox")
        for name, number in (("txt2img_width", 512), ("txt2img_height", 512), ("txt2img_hr_scale", 2), ("txt2img_steps", 20), ("txt2img_hires_steps", 0)):
            gr.Slider(0, 4096, number, step=1, elem_id=name)
        denoising = gr.Slider(0, 1, 0.6, elem_id="txt2img_denoising_strength")
        gr.Slider(1, 24, 6, elem_id="txt2img_hr_distilled_cfg")  # Forge's and Neo's
        gr.Slider(0, 4096, 0, elem_id="txt2img_hr_resize_x")
        gr.Slider(0, 4096, 0, elem_id="txt2img_hr_resize_y")
        field = gr.Dropdown(["Latent", "Lanczos", "Latent (bicubic)"], value="Latent", elem_id="txt2img_hr_upscaler")
        for name, value in (("txt2img_sampling", "Euler"), ("txt2img_scheduler", "Automatic"), ("hr_sampler", "Use same sampler"), ("hr_scheduler", "Karras")):
            gr.Dropdown([value], value=value, elem_id=name)
        made, strength = build(defaults(), lambda name: PREFIX + name, ["lanczos"], (field, {"Fast": "Lanczos", "Published": "Latent (bicubic)"}))
        wire_strength(strength, denoising)
        # Like "Generate", which takes them all in; what is only ever filled would not be editable.
        gr.Button("Generate").click(lambda *given: None, [field, denoising, strength, *made.values()])
    page.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, show_api=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def page(server):
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 1400})
        tab.asked, tab.answer = [], PLAN
        tab.route("**/*", lambda route: route.continue_() if route.request.url.startswith(server) else route.abort())
        tab.route("**/apt/plan", lambda route: (tab.asked.append(route.request.post_data_json), route.fulfill(json=tab.answer)))
        tab.goto(server)
        tab.wait_for_selector(f"#{PREFIX}plan", state="attached")
        tab.add_style_tag(content=(ROOT / "style.css").read_text())
        tab.add_script_tag(content=HOST + (ROOT / "javascript/apt.js").read_text())
        assert not tab.is_visible(f"#{PREFIX}overlap"), "what a newcomer need not see is folded away"
        tab.click(f"#{PREFIX}more .label-wrap")
        tab.wait_for_selector(f"#{PREFIX}overlap", state="visible")
        yield tab
        browser.close()


def number(page, name):
    return float(page.input_value(f"#{PREFIX}{name} input[type=number]"))


def chosen(page, name):
    return page.evaluate(f"document.querySelector('#{PREFIX}{name} input:checked').value")


def test_every_control_is_on_the_page(page):
    for control in CONTROLS:
        assert page.locator(f"#{PREFIX}{control.name}").count() == 1, control.name


def test_the_settings_page_alone_has_the_defaults():
    """The host skips a component with this mark when it saves what the page showed, and when it puts that back at the next start."""
    with gr.Blocks():
        made, _ = build(defaults() | {"overlap": 0.6}, lambda name: PREFIX + name)
    assert all(component.do_not_save_to_config for component in made.values())
    assert made["overlap"].value == 0.6


def test_a_preset_fills_the_rest_and_a_touch_makes_it_custom(page):
    page.click(f"#{PREFIX}preset label:has-text('Fast')")
    page.wait_for_function(f"document.querySelector('#{PREFIX}overlap input[type=number]').value == '{preset_values('Fast')['overlap']}'")
    assert page.input_value(f"#{PREFIX}phases input") == preset_values("Fast")["phases"]
    assert chosen(page, "preset") == "Fast"
    page.fill(f"#{PREFIX}overlap input[type=number]", "0.3")
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelector('#{PREFIX}preset input:checked').value == 'Custom'")
    assert number(page, "overlap") == 0.3


def test_the_strength_is_the_hosts_whichever_is_moved(page):
    assert number(page, "strength") == 0.6
    page.fill(f"#{PREFIX}strength input[type=number]", "0.3")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('#txt2img_denoising_strength input[type=number]').value == '0.3'")
    page.fill("#txt2img_denoising_strength input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelector('#{PREFIX}strength input[type=number]').value == '0.5'")
    page.click(f"#{PREFIX}preset label:has-text('Fast')")
    page.wait_for_function(f"document.querySelector('#{PREFIX}strength input[type=number]').value == '0.25'")


def test_a_preset_fills_the_hosts_fields_and_the_page_has_no_error(page):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.click(f"#{PREFIX}preset label:has-text('Published')")
    page.wait_for_function("document.querySelector('#txt2img_hr_upscaler input').value == 'Latent (bicubic)'")
    own = PRESETS["Published"].schedule
    assert float(page.input_value("#txt2img_denoising_strength input[type=number]")) == own.strength
    assert float(page.input_value("#txt2img_hires_steps input[type=number]")) == own.steps
    page.click(f"#{PREFIX}preset label:has-text('Custom')")
    page.wait_for_timeout(1000)
    assert page.input_value("#txt2img_hr_upscaler input") == "Latent (bicubic)"
    assert page.asked[-1]["upscaler"] == "Latent (bicubic)"
    assert not errors
    assert not page.is_visible(f"#{PREFIX}upscaler")


def test_the_panel_shows_the_plan_and_follows_the_sliders(page):
    page.wait_for_selector(f"#{PREFIX}plan svg")
    assert page.locator(f"#{PREFIX}plan svg rect.apt-window").count() == 3
    text = page.inner_text(f"#{PREFIX}plan")
    assert "1024 x 1024" in text
    assert text.splitlines()[0] == "About 2 minutes per picture on this machine, 3.1 GB of the GPU at most so far"
    assert [cell.strip() for cell in page.locator(f"#{PREFIX}plan td").all_inner_texts()] == ["1", "1024 x 1024", "20", "9", "4", "260"]
    assert "altogether 260, 50 % of DemoFusion as published, which takes 520; the host's own pass is worth about 80" in text
    assert text.splitlines()[-1] == "A <Latent> upscaler"
    first = page.asked[0]
    assert (first["first"], first["target"], first["sampler"], first["scheduler"]) == ([512, 512], [1024, 1024], "Euler", "Karras")
    assert first["upscaler"] == "Latent"
    assert first["shift"] == 6
    assert parse([first["settings"]]) == parse([])
    page.fill(f"#{PREFIX}matching input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.wait_for_timeout(1500)
    assert page.asked[-1]["settings"]["matching"] == 0.5


def test_before_anything_was_measured_the_panel_counts_evaluations(page):
    page.answer = PLAN | {"seconds": None, "memory": None, "gpu": False}
    page.fill(f"#{PREFIX}jitter input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelector('#{PREFIX}plan').innerText.includes('260 UNet evaluations per picture; how long that takes here')")


def test_after_a_picture_the_panel_asks_again(page):
    page.wait_for_selector(f"#{PREFIX}plan svg")
    before = len(page.asked)
    page.evaluate("document.dispatchEvent(new Event('click'))")
    page.wait_for_timeout(800)
    assert len(page.asked) == before, "nothing has changed"
    page.evaluate("document.body.append(Object.assign(document.createElement('div'), {id: 'html_log_txt2img', textContent: 'Time taken: 3 sec.'}))")
    page.evaluate("document.dispatchEvent(new Event('click'))")
    page.wait_for_timeout(800)
    assert len(page.asked) == before + 1
    assert page.asked[-1] == page.asked[-2]


def test_without_views_of_the_whole_there_is_no_column_for_them(page):
    page.answer = PLAN | {"phases": [PHASE | {"dilated": 0}], "gpu": False}
    page.fill(f"#{PREFIX}jitter input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.wait_for_function(f"document.querySelectorAll('#{PREFIX}plan th').length == 5")
    assert "3.1 GB of memory at most so far" in page.inner_text(f"#{PREFIX}plan")


@pytest.mark.parametrize("marks", ['id="setting_sd_model_checkpoint"', 'class="model_selection"'])
def test_a_checkpoint_that_is_chosen_is_asked_about_until_it_is_loaded(page, marks):
    page.answer = PLAN | {"later": True}
    assert all("checkpoint" not in one for one in page.asked)
    page.evaluate(f"""() => {{
        const field = Object.assign(document.createElement("div"), {{innerHTML: '<div {marks}><input value="second"></div>'}});
        document.body.append(field);
        field.querySelector("input").dispatchEvent(new Event("input", {{bubbles: true}}));
    }}""")
    page.wait_for_timeout(1500)
    assert [one.get("checkpoint") for one in page.asked].count("second") == 1
    page.answer = PLAN
    page.wait_for_timeout(6000)
    assert [one.get("checkpoint") for one in page.asked].count("second") == 2


def test_the_panel_says_what_is_wrong(page):
    page.answer = {"error": "phases <b>9</b> do not fit"}
    page.fill(f"#{PREFIX}jitter input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.wait_for_selector(f"#{PREFIX}plan .apt-error")
    assert page.inner_text(f"#{PREFIX}plan") == "phases <b>9</b> do not fit"


def test_without_hires_fix_the_panel_says_so(page):
    page.uncheck("#txt2img_hr-checkbox input")
    page.wait_for_selector(f"#{PREFIX}plan .apt-error")
    assert "Hires. fix is off" in page.inner_text(f"#{PREFIX}plan")


@pytest.mark.parametrize(("given", "scale", "target"), [((72, 60), "2.5", [184, 152]), ((64, 64), "2", [128, 128]), ((3, 5), "1", [8, 8])])
def test_the_dropdown_entry_of_img2img_shows_the_size_that_its_job_makes(page, given, scale, target):
    """`script.py` rounds in the same way; `test_script.py` has the same numbers."""
    page.evaluate(
        """([width, height, scale]) => {
            const canvas = Object.assign(document.createElement("canvas"), {width, height});
            const made = document.createElement("div");
            made.innerHTML = `<div id="mode_img2img"><div style="display: block;"><img src="${canvas.toDataURL()}"></div></div>
                <div id="script_img2img_apt_upscale_scale"><input type="number" value="${scale}"></div><div id="script_img2img_apt_upscale_plan"> </div>`;
            document.body.append(made);
        }""",
        [*given, scale],
    )
    page.wait_for_timeout(500)
    page.click("#txt2img_hr-checkbox input")
    page.wait_for_timeout(1000)
    asked = [one for one in page.asked if one["img2img"]][-1]
    assert (asked["given"], asked["target"]) == (list(given), target)
