"""The published pipelines beside this engine. With DEMOFUSION_ROOT and ACCDIFFUSION_ROOT, folders of their checkouts, they are run."""

import json
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apt_ext.checkpoints.packages import missing

if missing():
    pytest.skip("pip install -r requirements/checkpoints.txt", allow_module_level=True)

from bench.originals import __main__ as command
from bench.originals.ours import DEPARTURES
from bench.originals.real import distances, real_pictures
from bench.originals.theirs import PUBLISHED
from tests.checkpoints import tiny

ROOTS = {"demofusion": os.environ.get("DEMOFUSION_ROOT"), "accdiffusion": os.environ.get("ACCDIFFUSION_ROOT")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Kind -> its folder, with windows of 256 pixels: AccDiffusion's maps of attention need as many."""
    root = tmp_path_factory.mktemp("originals")

    def make(kind):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "WINDOW", 32)
            tiny.pipeline(kind, root / "words").save_pretrained(root / kind)
        return str(root / kind)

    return make


@pytest.mark.parametrize("method", PUBLISHED)
def test_what_differs_is_named_and_the_rest_is_rounding(checkpoint, tmp_path, method, capsys):
    if ROOTS[method] is None:
        pytest.skip(f"{method.upper()}_ROOT names no checkout")
    args = ["--model", checkpoint("sdxl"), f"--{method}", str(ROOTS[method]), "--steps", "4", "--prompt", "a red cat, sleeping", "--out", str(tmp_path)]
    assert command.main([*args, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["pipelines"][method]
    departures, rounding = found["departures"], 1e-4 * found["deviation"]
    assert departures["none"]["latent"] < rounding
    assert max(map(max, departures["none"]["steps"])) < rounding
    assert departures["none"]["picture"]["most"] <= 1
    names = set(DEPARTURES) - (set() if method == "accdiffusion" else {"exchange", "words"})
    assert departures.keys() == {"none", "all", *names}
    assert all(departures[name]["latent"] > 20 * rounding for name in names)
    assert departures["all"]["from the library's picture"] == {"mean": 0.0, "most": 0}  # so nothing else differs
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "no checkout is named"),
        ("--demofusion {tmp}", "is no checkout of github.com/PRIS-CV/DemoFusion (it has no pipeline_demofusion_sdxl.py); run: git clone"),
        ("--accdiffusion {tmp}/nowhere", "is no checkout of github.com/lzhxmu/AccDiffusion"),
        ("--demofusion {old}", "cannot be imported with diffusers"),
        ("--demofusion {fine} --departures jitter", "departure 'jitter' does not exist; use some of first pass, noise"),
        ("--demofusion {fine} --scale 9", "scale 9 is out of range"),
        ("--demofusion {fine} --model {tmp}/nowhere", "does not exist"),
        ("--demofusion {fine} --model {sd1}", "a checkpoint of Stable Diffusion; name an SDXL one"),
        ("--demofusion {fine} --model {sdxl} --real {tmp}", "has 0 pictures and 9 are needed"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(checkpoint, tmp_path, capsys, arguments, said):
    for name, text in (("old", "from diffusers.models import SomethingGone"), ("fine", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pipeline_demofusion_sdxl.py").write_text(text)
    named = {"tmp": tmp_path, "old": tmp_path / "old", "fine": tmp_path / "fine"}
    named |= {kind: checkpoint(kind) for kind in ("sd1", "sdxl") if f"{{{kind}}}" in arguments}
    words = [word.format(**named) for word in arguments.split()]
    assert command.main(["--model", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "out"), *words]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, len(err.strip().splitlines())) == ("", 1)


def _set(seed: int, roughness: float, count: int = 24) -> list[Image.Image]:
    rng = np.random.default_rng(seed)

    def one() -> Image.Image:
        smooth = np.kron(rng.uniform(40, 210, (8, 8, 3)), np.ones((32, 32, 1)))
        return Image.fromarray((smooth + roughness * rng.normal(size=smooth.shape)).clip(0, 255).astype(np.uint8))

    return [one() for _ in range(count)]


def test_pictures_of_the_real_kind_are_nearer_than_others(tmp_path):
    for number, picture in enumerate(_set(1, 10)):
        wide = Image.new("RGB", (300, 256))
        wide.paste(picture, (22, 0))  # whose middle is taken
        wide.save(tmp_path / f"{number:02}.png")
    real = real_pictures(str(tmp_path), 12, 256)
    assert {picture.size for picture in real} == {(256, 256)}
    made: dict[str, Any] = distances({"like": _set(2, 10, 12), "rough": _set(3, 60, 12)}, real)
    for measure in ("whole", "patches"):
        assert made["like"][measure] < 0.2 * made["rough"][measure]
    with pytest.raises(ValueError, match="has 24 pictures and 28 are needed"):
        real_pictures(str(tmp_path), 20, 256)
