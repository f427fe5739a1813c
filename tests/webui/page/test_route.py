"""The route of the panel: who may ask, and what comes of whatever is asked."""

import asyncio
import base64
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from apt_ext.webui.page.access import HEADER, refusal

pytestmark = pytest.mark.usefixtures("settings_page")

HIRES = {"img2img": False, "first": [64, 64], "target": [128, 128], "steps": 8, "hires_steps": 0, "denoising": 0.6, "sampler": "euler"}
HIRES |= {"scheduler": "Automatic", "upscaler": "Lanczos", "settings": {}}
PICTURE = HIRES | {"img2img": True, "given": [64, 64], "resize_mode": 0}


class App:
    """As much of the host's application as a route is added to. `auth`: as gradio keeps the page's users."""

    def __init__(self, auth=None):
        self.auth = auth

    def add_route(self, path, route, methods):
        assert (path, methods) == ("/apt/plan", ["POST"])
        self.route = route

    def post(self, body, headers=()):
        async def stream():
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        request = SimpleNamespace(headers=dict(headers), stream=stream)
        return asyncio.run(self.route(request))

    def ask(self, asked, **headers):
        return self.post(asked if isinstance(asked, bytes) else json.dumps(asked).encode(), headers)


@pytest.fixture
def app(host):
    app = App()
    host.route.add_route(None, app)
    return app


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize("asked", [HIRES, PICTURE])
def test_a_question_gets_its_plan(app, asked):
    answer = app.ask(asked)
    assert answer.status_code == 200
    assert answer.content["phases"][-1]["size"] == [128, 128]


def test_a_page_without_schedules_gets_the_plan_of_the_automatic_one(app):
    """Forge Classic's: its samplers bring their own, and the page sends null for the field that it has not."""
    without = app.ask(HIRES | {"scheduler": None})
    assert without.status_code == 200
    assert without.content == app.ask(HIRES).content
    assert "error" not in without.content


LOCKED = [({"api_auth": "ann:a,bob:b:c"}, None), ({"api_auth": None}, {"ann": "a", "bob": "b:c"}), ({"api_auth": None}, lambda n, p: (n, p) == ("ann", "a"))]


@pytest.mark.parametrize(("options", "auth"), LOCKED)
def test_under_the_host_s_log_in_only_its_users_are_answered(host, options, auth):
    vars(host.shared.cmd_opts).update(options)
    app = App(auth)
    host.route.add_route(None, app)
    strangers = [{}, basic("ann", "b"), basic("bob", "a"), basic("", ""), {"Authorization": "Basic !"}, {"Authorization": "Basic /w=="}]
    strangers += [{"Authorization": "Bearer ann:a"}, {"Authorization": ""}, {"Authorization": "Basic " + base64.b64encode(b"ann").decode()}]
    for headers in strangers:
        answer = app.ask(HIRES, **headers)
        assert (answer.status_code, answer.headers) == (401, {"WWW-Authenticate": "Basic"}), headers
        assert set(answer.content) == {"error"}
        assert "--api-auth" in answer.content["error"]
    old = app.ask(HIRES, **{HEADER: "of another start", **basic("ann", "a")})
    assert (old.status_code, old.headers) == (403, {})
    assert "reload it" in old.content["error"]
    for headers in (basic("ann", "a"), {HEADER: host.access.KEY}):
        assert app.ask(HIRES, **headers).status_code == 200


def test_a_password_may_have_colons_and_other_letters():
    assert refusal(basic("bob", "b:c"), "bob:b:c", None) is None
    assert refusal(basic("bob", "ü"), None, {"bob": "ü"}) is None
    assert refusal({HEADER: "ü"}, "bob:b", None) is not None


def test_a_stranger_s_question_is_not_even_read(host):
    app = App({"ann": "a"})
    host.route.add_route(None, app)

    async def stream():
        raise AssertionError
        yield

    assert asyncio.run(app.route(SimpleNamespace(headers={}, stream=stream))).status_code == 401


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 60000, "no JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        ({"target": None}, "target None is no size"),
        ({"target": [1]}, r"target \[1\] is no size"),
        ({"target": ["a", 64]}, "target width 'a' is no number"),
        ({"target": [64, 10**400]}, r"height 1000+\.\.\. cannot be planned; use a whole number from 1 to 16384"),
        ({"target": [64.5, 64]}, "width 64.5 cannot be planned"),
        ({"target": [20000, 64]}, r"target width 20000 cannot be planned"),
        ({"target": [8, 8]}, "smaller than"),
        ({"first": {}}, "first {} is no size"),
        ({"scheduler": 1}, "scheduler 1 is no name"),
        ({"checkpoint": 1}, "checkpoint 1 is no name"),
        ({"steps": "8"}, "Sampling steps '8' is no number"),
        ({"steps": True}, "Sampling steps True is no number"),
        ({"steps": float("inf")}, "Sampling steps inf cannot be planned"),
        ({"hires_steps": -1}, "Hires steps -1 cannot be planned"),
        ({"denoising": float("nan")}, "Denoising strength nan cannot be planned; use 0 to 1"),
        ({"denoising": 1e-9}, "denoising strength 1e-09 spreads the steps over a schedule of 7999999999"),
        ({"denoising": 0}, "leaves no step to run"),
        ({"shift": "3"}, "Shift '3' is no number"),
        ({"shift": -1}, "Shift -1 cannot be planned; use 0 to 1000"),
        ({"sampler": 3}, "sampler 3 is no name"),
        ({"sampler": "magic"}, "sampler 'magic' cannot be used"),
        ({"upscaler": 5}, "upscaler 5 is no name"),
        ({"upscaler": "Magic"}, "upscaler 'Magic' does not exist"),
        ({"settings": 3}, "settings 3 are no JSON object"),
        ({"settings": {"gama": 1}}, "setting 'gama' does not exist"),
        ({"settings": {"phases": ",".join(str(1 + k / 1000) for k in range(1, 500))}}, "499 phases cannot be planned"),
        ({"img2img": "yes"}, "img2img 'yes' is neither true nor false"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(app, wrong, words):
    answer = app.ask(wrong if isinstance(wrong, bytes) else HIRES | wrong)
    assert answer.status_code == 200
    assert set(answer.content) == {"error"}
    assert re.search(words, answer.content["error"])
    assert "\n" not in answer.content["error"]


@pytest.mark.parametrize("name", sorted(set(PICTURE) - {"settings", "img2img", "upscaler", "first", "hires_steps"}))
def test_a_missing_field_is_named(app, name):
    answer = app.ask({key: value for key, value in PICTURE.items() if key != name})
    assert answer.content == {"error": f"the plan needs {name!r}, which is missing"}


def test_too_long_a_question_is_not_kept(app):
    answer = app.ask(HIRES | {"sampler": "x" * 100_000})
    assert answer.status_code == 413
    assert "longer than 65536 bytes" in answer.content["error"]


def test_what_nobody_thought_of_is_a_sentence_too(host, app, monkeypatch):
    reported = []
    monkeypatch.setattr(host.errors, "report", lambda *args, **more: reported.append(args))
    monkeypatch.setattr(host.route, "plan", lambda asked: 1 / 0)
    assert app.ask(HIRES).content == {"error": host.route.UNEXPECTED}
    assert reported


JUNK = [None, True, 0, -1, 1, 7, 10**30, 0.5, float("nan"), float("inf"), "", "x", "euler", [], [1, 2], [64, 64], [None, 1], {}, {"gamma": 2}, "9,3"]


@limits(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wrong=st.dictionaries(st.sampled_from(sorted(PICTURE)), st.sampled_from(JUNK), max_size=4))
def test_whatever_is_asked_is_answered(app, wrong):
    answer = app.ask(PICTURE | wrong)
    assert answer.status_code == 200
    assert "phases" in answer.content or answer.content["error"].strip()
    json.dumps(answer.content, allow_nan=False)
    assert answer.content.get("error") != "the plan could not be made; the server's console says why"
