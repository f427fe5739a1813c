"""The pages for users: what they quote is said, what is said is explained, and their script runs."""

import ast
import base64
import io
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.control import BARS, UNITS
from tests.acceptance.ways import WAYS
from tests.guide import TEMPLATE, template

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = [
    *(ROOT / "apt_ext" / "webui").rglob("*.py"),
    *(ROOT / "apt_ext" / "core").rglob("*.py"),
    ROOT / "apt_ext" / "options.py",
    ROOT / "apt_ext" / "written.py",
]


def sentences():
    """Every text in the code, "..." where a value stands in it."""
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def quoted():
    """The first column of the page of troubles."""
    rows = re.findall(r"^\| (.+?) \| ", (DOCS / "troubles.md").read_text(), re.MULTILINE)
    return [row for row in rows if row != "what you read"]


def says(sentence, quote):
    return re.search(".*".join(re.escape(piece.strip()) for piece in quote.split("...")), sentence, re.DOTALL) is not None


def test_what_the_page_of_troubles_quotes_is_said():
    said, quotes = sentences(), quoted()
    assert len(quotes) > 25
    assert [quote for quote in quotes if not any(says(one, quote) for one in said)] == []


def test_every_remark_under_a_picture_is_explained():
    remarks = [one for one in sentences() if re.match(r"APT(: \w| is on| did not run)", one) and one.endswith(".") and "\n" not in one]
    assert len(remarks) > 7
    assert [one for one in remarks if not any(says(one, quote) for quote in quoted())] == []


def test_the_translators_template_has_every_text_of_the_page():
    """Written anew by `python -m tests.guide`."""
    assert TEMPLATE.read_text() == template()
    assert set(json.loads(template()).values()) == {""}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_every_page_leads_somewhere(page):
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        file, _, place = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if place:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads], link


@pytest.fixture
def webui():
    """Answers as the host's API does; -> its address and what it was asked."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if self.path.endswith("png-info"):
                text = Image.open(io.BytesIO(base64.b64decode(body["image"]))).info.get("parameters")
                answer = {"parameters": json.loads(text) if text else {}}
            else:
                answer = {"images": [body["init_images"][0]]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/sdapi/v1/", asked
    server.shutdown()


def test_the_script_for_a_folder_takes_each_pictures_own_prompt_seed_and_regions(webui, tmp_path, monkeypatch, capsys):
    from PIL.PngImagePlugin import PngInfo

    url, asked = webui
    source, own = tmp_path / "pictures", PngInfo()
    source.mkdir()
    own.add_text("parameters", json.dumps({"Prompt": "a leaf", "Negative prompt": "blur", "Seed": "7", "APT regions": "0-50% x 0-100%: snow"}))
    Image.new("RGB", (8, 8)).save(source / "a.png", pnginfo=own)
    Image.new("RGB", (9, 7)).save(source / "b.jpg")
    (source / "notes.txt").write_text("no picture")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "recipes.md").read_text(), re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["folder.py", str(source), str(tmp_path / "larger")])
    exec(compile(code.replace("http://127.0.0.1:7860/sdapi/v1/", url), "folder.py", "exec"), {})
    assert sorted(path.name for path in (tmp_path / "larger").iterdir()) == ["a.png", "b.png"]
    jobs = [body for path, body in asked if path.endswith("img2img")]
    assert [(job["prompt"], job["negative_prompt"], job["seed"]) for job in jobs] == [("a leaf", "blur", 7), ("", "", -1)]
    assert [job["script_args"] for job in jobs] == [
        [{"scale": 2, "preset": "Balanced", "regions": "0-50% x 0-100%: snow"}],
        [{"scale": 2, "preset": "Balanced"}],
    ]
    assert capsys.readouterr().out == "a.png\nb.jpg\n"


def test_the_page_of_the_host_s_ways_has_each_of_them_as_it_was_found():
    """`WAYS_TABLE=docs/ways.md pytest tests/acceptance/test_ways.py` writes the rows."""
    ways = [way for group in WAYS.values() for way in group]
    text = (DOCS / "ways.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert [row[0] for row in rows] == [way.what for way in ways]
    for (_, outcome, *claims, after), way in zip(rows, ways, strict=True):
        assert after == "the same", way.what
        assert outcome.startswith(("refused: ", "error: ")) == bool(way.refused), way.what
        assert way.refused in outcome, way.what
        if not way.refused:
            named, texts = claims[0].split(" of ")
            assert int(named) == (int(texts) if way.claims is None else way.claims), way.what


def test_the_page_of_controlnet_has_every_row_within_its_bars():
    """`CONTROL_TABLE=docs/control.md pytest tests/acceptance/test_control.py` writes the rows."""
    text = (DOCS / "control.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert [row[0] for row in rows][: len(BARS) + len(UNITS)] == [*(bar.what for bar in BARS), *(unit.what for unit in UNITS)]
    for what, whole, shrunk, _ in rows:
        assert "ControlLLLite" in what or (float(whole) >= 0.85 and float(shrunk) < 0.15), what
