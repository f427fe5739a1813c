"""The house as CONTRIBUTING.md draws it: which folders there are, and who may import whom."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
HOST = {"modules", "backend", "gradio", "fastapi"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


CODE = {module_of(path): path for folder in ("apt_ext", "bench") for path in (ROOT / folder).rglob("*.py")}

# Whose modules -> what of this repository they may import, and which packages of others (None: any but the host's).
MAY_IMPORT: dict[str, tuple[set[str], set[str] | None]] = {
    "apt_ext.written": (set(), set()),
    "apt_ext.options": ({"apt_ext.written"}, set()),
    "apt_ext.core": ({"apt_ext.core", "apt_ext.options"}, {"torch", "einops"}),
    "apt_ext.webui": ({"apt_ext", "apt_ext.webui", "apt_ext.core", "apt_ext.options"}, {"torch", "einops", "numpy", "PIL", *HOST}),
    "apt_ext.demo": ({"apt_ext", "apt_ext.demo", "apt_ext.core", "apt_ext.options"}, None),
    "apt_ext.demo.cli": ({"apt_ext", "apt_ext.demo", "apt_ext.checkpoints", "apt_ext.core", "apt_ext.options"}, None),
    "apt_ext.checkpoints": ({"apt_ext", "apt_ext.checkpoints", "apt_ext.demo", "apt_ext.core", "apt_ext.options"}, None),
    "apt_ext.__main__": ({"apt_ext.demo.cli"}, set()),
    "apt_ext": (set(), set()),
    "bench.originals": ({"apt_ext", "bench", "bench.originals", "apt_ext.checkpoints", "apt_ext.demo", "apt_ext.core", "apt_ext.options"}, None),
    "bench": ({"apt_ext", "bench", "apt_ext.demo", "apt_ext.core", "apt_ext.options"}, None),
}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it, also inside of functions and for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name in CODE]
            yield from modules or [node.module or ""]


def owner(module: str, owners: dict[str, object] | set[str]) -> str:
    """The longest of these names that a module's begins with."""
    return max((name for name in owners if module == name or module.startswith(name + ".")), key=len, default="")


@pytest.mark.parametrize("module", CODE)
def test_a_module_imports_what_its_place_allows(module: str) -> None:
    ours, theirs = MAY_IMPORT[owner(module, set(MAY_IMPORT))]
    for name in imports(CODE[module]):
        top = name.partition(".")[0]
        if top in ("apt_ext", "bench"):
            assert owner(name, set(MAY_IMPORT)) in ours, f"{module} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top not in HOST if theirs is None else top in theirs, f"{module} imports {name}"


def test_no_arrow_leads_back_to_where_it_came_from() -> None:
    arrows = {module: {name for name in imports(path) if name in CODE and name != module} for module, path in CODE.items()}
    assert sum(map(len, arrows.values())) > 200
    graphlib.TopologicalSorter(arrows).prepare()  # CycleError names the circle


def rooms() -> list[str]:
    """The rooms of the adapter in the order in which CONTRIBUTING.md draws their arrows."""
    (line,) = re.findall(r"^inside webui: +(.*)$", CONTRIBUTING, re.MULTILINE)
    return line.split(" -> ")


def test_arrows_between_the_adapters_rooms_point_one_way() -> None:
    order, seen = [*rooms(), "model", "errors"], set()
    assert {path.name for path in (ROOT / "apt_ext" / "webui").iterdir() if any(path.glob("*.py"))} <= set(order)
    for module, path in CODE.items():
        for name in imports(path):
            start, end = (one.removeprefix("apt_ext.webui.").partition(".")[0] if one.startswith("apt_ext.webui.") else "" for one in (module, name))
            if start in order and end in order and start != end:
                assert order.index(start) < order.index(end), f"{module} imports {name}"
                seen.add((start, end))
    assert len(seen) > len(order)


def test_no_test_leans_on_another() -> None:
    """What tests share lies beside them, or a change to one would turn others off."""
    files = [*(ROOT / "tests").rglob("*.py")]
    assert len(files) > 60
    assert not [path.name for path in files for name in imports(path) if name.rpartition(".")[2].startswith("test_")]


def test_core_needs_no_numpy() -> None:
    """Not by way of a tensor either."""
    assert not [module for module, path in CODE.items() if module.startswith("apt_ext.core") and ".numpy()" in path.read_text()]


def test_float64_is_for_the_processor_alone() -> None:
    """Some devices have none: Apple's raises at the first tensor."""
    found = [(module, line) for module, path in CODE.items() if module.startswith("apt_ext") for line in path.read_text().splitlines() if ".double()" in line]
    assert found
    assert not [line for _, line in found if not re.search(r"\.cpu\(\)\.double\(\)", line)]


def drawn() -> set[str]:
    """The folders of the first drawing in CONTRIBUTING.md."""
    found: list[str] = []
    (block,) = re.findall(r"## The house\n\n```\n(.*?)```", CONTRIBUTING, re.DOTALL)
    above: list[str] = []
    for line in block.splitlines():
        depth = len(list(takewhile(str.isspace, line))) // 2
        name = line.split()[0]
        above = [*above[:depth], name]
        found.append("".join(above))
    return {name for name in found if name.endswith("/")}


def test_the_drawing_shows_every_folder() -> None:
    def inside(*patterns: str) -> set[str]:
        found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_dir()}
        return {path.relative_to(ROOT).as_posix() + "/" for path in found if any(one.is_file() for one in path.iterdir()) and path.name != "__pycache__"}

    made = {"build/", "out/", "htmlcov/"}
    top = {name for name in inside("[!.]*") if not name.endswith(".egg-info/")} - made
    assert drawn() == top | inside("apt_ext/**/*", "bench/*", "tests/*")


def test_importing_the_package_pulls_nothing_in() -> None:
    code = "import sys, apt_ext, apt_ext.options; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'einops', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
