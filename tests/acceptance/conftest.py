"""The acceptance suite: it drives a running WebUI with this extension through its API.

    WEBUI_URL=http://127.0.0.1:7860 python -m pytest tests/acceptance

WEBUI_CHECKPOINTS names the checkpoints to run it with, separated by commas; without it, the loaded one. Windows and pictures are kept
small by settings that are sent along with every job, so a checkpoint with random weights on a CPU is enough.
"""

import base64
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image

URL = os.environ.get("WEBUI_URL", "").rstrip("/")
SIDE = int(os.environ.get("WEBUI_SIDE", "128"))  # of a window and of the pictures, in pixels; 64 is quicker


def pytest_collection_modifyitems(items):
    if URL:
        return
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason="needs a running WebUI with this extension: set WEBUI_URL"))


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(body.get("detail") or body)
        self.status, self.sentence, self.body = status, str(body.get("detail")), body


class Answer:
    def __init__(self, body):
        self.images = body["images"]
        self.info = json.loads(body["info"])

    @property
    def text(self):
        return self.info["infotexts"][0]

    def picture(self, index=0):
        return Image.open(io.BytesIO(base64.b64decode(self.images[index]))).convert("RGB")

    def same(self, other):
        return [Answer._pixels(image) for image in self.images] == [Answer._pixels(image) for image in other.images]

    @staticmethod
    def _pixels(image):
        picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
        return picture.size, picture.tobytes()


def encoded(picture, **how):
    file = io.BytesIO()
    picture.save(file, "PNG", **how)
    return base64.b64encode(file.getvalue()).decode()


class WebUI:
    """A running WebUI; every job of its is small."""

    def __init__(self, checkpoint=None):
        self.options = set(self.call("/sdapi/v1/options"))
        self.settings: dict[str, object] = {f"apt_window_{family}": SIDE for family in ("sd1", "sd2", "sd2v", "sdxl")}
        # The host puts a setting back after a job only where its configuration file has it, so every job says what it needs.
        self.settings |= {"show_progress_every_n_steps": -1, "batch_cond_uncond": True, "upscaler_for_img2img": "None"}
        self.lacks = {"batch_cond_uncond"} - self.options  # Neo, which fails for a setting that it has not
        # The host itself fails for inpainting checkpoints: in the hires pass with Latent upscalers, in img2img with "latent upscale",
        # where prompt and negative prompt differ in length, and with a negative guidance minimum sigma.
        self.inpainting = "inpaint" in (checkpoint or "")
        # Neo's hires pass has no upscalers of the host's own, and resizes by Lanczos where none is chosen.
        wanted = "Lanczos" if self.inpainting else "Latent"
        there = [one["name"] for kind in ("latent-upscale-modes", "upscalers") for one in self.call(f"/sdapi/v1/{kind}")]
        self.upscaler = wanted if wanted in there else "None"
        self.lanczos = "Lanczos" if "Lanczos" in there else "None"
        if checkpoint:
            self.settings["sd_model_checkpoint"] = checkpoint
        # Forge's hires pass has a guidance of its own, without one by default, and fails where the API says nothing of its modules.
        schemas = self.call("/openapi.json")["components"]["schemas"].values()
        own = {"hr_cfg": 5, "hr_additional_modules": ["Use same choices"]}
        self.own = {name: value for name, value in own.items() if any(name in schema.get("properties", {}) for schema in schemas)}

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(URL + path, data=data, headers={"Content-Type": "application/json"})
        try:
            return json.loads(urllib.request.urlopen(request).read())
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read())) from None

    def job(self, path, defaults, given):
        body = defaults | given
        asked = self.settings | body.get("override_settings", {})
        body["override_settings"] = {name: value for name, value in asked.items() if name not in self.lacks}
        return Answer(self.call(path, body))

    def txt2img(self, **given):
        defaults = {"prompt": "a leaf", "negative_prompt": "blurry", "seed": 11, "steps": 4, "width": SIDE, "height": SIDE}
        return self.job("/sdapi/v1/txt2img", defaults | {"sampler_name": "Euler", "scheduler": "Automatic", "cfg_scale": 5}, given)

    def hires(self, **given):
        defaults = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": self.upscaler, "denoising_strength": 0.6}
        return self.txt2img(**defaults | self.own | given)

    def img2img(self, picture, **given):
        defaults = {"prompt": "a leaf", "negative_prompt": "blurry", "seed": 11, "steps": 8, "width": 2 * SIDE, "height": 2 * SIDE, "cfg_scale": 5}
        defaults |= {"sampler_name": "Euler", "scheduler": "Automatic", "denoising_strength": 0.6, "init_images": [encoded(picture)]}
        return self.job("/sdapi/v1/img2img", defaults, given)

    def outcome(self, run):
        try:
            return run()
        except Refused as refused:
            return refused

    def in_background(self, run):
        """Start a job and poll the progress until it ends: (results, [(progress, text, state)])."""
        results, seen = [], []

        def work():
            results.append(self.outcome(run))

        thread = threading.Thread(target=work)
        thread.start()
        return thread, results, seen

    def progress(self):
        return self.call("/sdapi/v1/progress?skip_current_image=true")


def apt(**settings):
    return {"APT": {"args": [{"enabled": True} | settings]}}


def _checkpoints():
    named = [name for name in os.environ.get("WEBUI_CHECKPOINTS", "").split(",") if name]
    return named or [None]


@pytest.fixture(scope="session", params=_checkpoints(), ids=str)
def webui(request):
    return WebUI(request.param)


@pytest.fixture(scope="session")
def picture():
    size = (SIDE, SIDE)
    red, green, blue = Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size), Image.linear_gradient("L").rotate(90).resize(size)
    return Image.merge("RGB", (red, green, blue))


@pytest.fixture
def clock():
    return time.monotonic
