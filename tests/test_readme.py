"""The examples of the README and the engine's page run, and what they name exists."""

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from apt_ext.demo.arguments import make_parser
from tests.guide import GUIDE, tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/engine.md").read_text(), re.DOTALL)
    exec(compile(code, "engine.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([1, 4, 128, 192])\n"


def test_every_command_parses():
    pages = README + (ROOT / "docs/checkpoints.md").read_text()
    lines = re.findall(r"python -m apt_ext ([a-z].*?)(?: {2,}#.*)?$", pages, re.MULTILINE)
    assert len(lines) >= 11
    for line in lines:
        make_parser().parse_args(shlex.split(line))


def test_every_link_leads_somewhere():
    for page, least in ((ROOT / "README.md", 9), (ROOT / "docs/webui.md", 1), (ROOT / "docs/engine.md", 1), (ROOT / "docs/checkpoints.md", 3)):
        links = re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", page.read_text())
        assert len(links) >= least
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_guides_tables_are_those_of_the_code():
    """Written anew by `python -m tests.guide`."""
    for table in tables():
        assert f"\n{table}\n\n" in GUIDE.read_text()


def test_the_readme_says_what_the_presets_evaluate():
    from apt_ext.demo.cli import main
    from apt_ext.options import PRESETS

    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) % \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {row[0] for row in rows} == set(PRESETS)
    for name, evaluations, share in rows:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(["plan", "1024x1024", "--model", "sdxl", "--preset", name, "--json"])
        plan = json.loads(out.getvalue())["window_evaluations"]
        assert (int(evaluations), int(share)) == (plan, round(100 * plan / 5600))


def test_a_clone_is_as_large_as_the_readme_says_and_its_data_are_compact():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}

    def megabytes(*suffixes):
        return sum(size for name, size in sizes.items() if name.endswith(suffixes)) / 1e6

    (said,) = re.findall(r"fetches (\d+) MB, .*: (\d+) MB are weights .*, (\d+) MB pictures .*, (\d+) MB\s+recordings", README)
    found = [megabytes(""), megabytes(".safetensors"), megabytes(".png", ".webp"), megabytes(".npz")]
    assert found == pytest.approx([int(value) for value in said], abs=1)
    assert [Path(name).name for name in sizes if name.endswith(".safetensors")] == ["leaves.safetensors"]
    assert megabytes(".json") < 0.2
