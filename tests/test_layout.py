"""The house rules that a reader relies on: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "apt_ext" / "core").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_core_needs_torch_and_einops_alone(path):
    for name in imports(path):
        top = name.partition(".")[0]
        allowed = top in ("torch", "einops") or top in sys.stdlib_module_names or name.startswith("apt_ext.core") or name == "apt_ext.options"
        assert allowed, f"{path.name} imports {name}"


def test_core_needs_no_numpy():
    """Not by way of a tensor either."""
    assert not [path.name for path in CORE if ".numpy()" in path.read_text()]


def test_core_is_found():
    assert len(CORE) > 10


@pytest.mark.parametrize("path", sorted((ROOT / "apt_ext" / "demo").rglob("*.py")), ids=lambda p: p.name)
def test_the_demo_knows_no_host(path):
    assert not [name for name in imports(path) if name.partition(".")[0] in ("modules", "gradio") or name.startswith("apt_ext.webui")]


def test_importing_the_package_pulls_nothing_in():
    code = "import sys, apt_ext, apt_ext.options; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'einops', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
