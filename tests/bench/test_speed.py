"""The speed benchmark: runs end to end, keeps what it has measured, and fails where a bar is missed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import bench.speed.__main__ as speed
from apt_ext.options import PRESETS, Preset
from bench.machine import matmul_flops
from bench.speed.__main__ import Settings, main
from bench.speed.bars import bars
from bench.speed.overhead import counting, exponent, host_reads
from bench.speed.page import page
from bench.speed.plan import PUBLISHED, count, plan
from bench.speed.stand_in import StandIn

TINY = Settings(
    sides=(64, 128),
    overlaps=(0.5,),
    steps=1,
    repeats=1,
    memory_side=128,
    embedded_side=32,
    embedded_batches=(1, 4),
    embedded_repeats=1,
    gpu_batches=(1,),
    tiled_side=64,
    tiled_repeats=1,
    tiled_memory_sides=(64, 72),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One tiny run on the CPU. Whether its bars are met is not asked: on pictures this small they mean nothing."""
    out = tmp_path_factory.mktemp("bench") / "docs" / "speed.json"
    main(["--out", str(out), "--device", "cpu"], TINY)
    return out, json.loads(out.read_text())


def good() -> dict[str, Any]:
    """Figures that meet every bar."""
    rows = [{"name": "DemoFusion", "share": 1.0}, {"name": "Quality", "share": 0.2}, {"name": "Balanced", "share": 0.08}, {"name": "Fast", "share": 0.04}]
    return {
        "plan": {"rows": rows},
        "overhead": {
            "rows": [{"side": 512, "overlap": 0.5, "share": 0.01}],
            "exponents": {"0.5": {"seconds": 1.0}},
            "reads": [{"reads": 30, "steps": 3}, {"reads": 30, "steps": 3}],
        },
        "memory": {"pixels": [8192, 8192], "allocated_mib": 100.0, "resident_mib": 200.0},
        "tiled": {
            "pixels": 1088,
            "ratio": 1.1,
            "rows": [{"scene": "moss", "views": 2.0, "largest": 1.5}],
            "memory": [{"pixels": 2048, "beyond_mib": 100.0}, {"pixels": 4096, "beyond_mib": 105.0}],
        },
        "gpu": {"rows": [{"unet": "SDXL", "window_batch": 4, "ratio": 1.02}]},
    }


def test_results_have_versions_machine_and_every_section(finished: tuple[Path, dict[str, Any]]) -> None:
    """What a reader needs in order to trust a figure; and nothing is invented where there is no GPU."""
    out, results = finished
    assert {"processor", "cores", "threads", "device", "python", "torch", "apt", "engine"} <= set(results["machine"])
    assert list(results["sections"]) == ["plan", "overhead", "memory", "tiled", "embedded", "gpu"]
    assert results["sections"]["gpu"] == {"reason": "not measured: no CUDA device", "rows": []}
    overhead = results["sections"]["overhead"]
    assert [row["megapixels"] for row in overhead["rows"]] == [0.25, 1.0]
    for row in overhead["rows"]:
        assert row["step_s"] > 0
        assert 0 < row["share"] < 1
    assert [row["window_batch"] for row in results["sections"]["embedded"]["rows"]] == [1, 4]
    assert results["sections"]["memory"]["allocated_latents"] > 1
    assert results["bars"]
    text = out.with_suffix(".md").read_text()
    assert text == page(results)
    assert "Quality" in text
    assert "no CUDA device" in text
    drawn = {element.text for element in ElementTree.fromstring(out.with_suffix(".svg").read_text()).iter("{http://www.w3.org/2000/svg}text")}
    assert {"overlap 0.5", "linear"} <= drawn


def test_a_second_run_measures_only_what_is_missing(finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections of the same machine, code and settings are kept; --fresh and other settings keep none."""
    _, results = finished
    ran: list[str] = []

    def fake(settings: Settings, device: torch.device) -> dict[str, Any]:
        return {name: (lambda name=name: (ran.append(name), results["sections"][name])[1]) for name in results["sections"]}

    monkeypatch.setattr(speed, "sections", fake)
    out = tmp_path / "speed.json"
    part = copy.deepcopy(results)
    del part["sections"]["memory"]
    for change, arguments, expected in (
        ({}, [], ["memory"]),
        ({}, ["--fresh"], list(results["sections"])),
        ({"machine": {"torch": "0"}}, [], list(results["sections"])),
        ({"settings": {"steps": 99}}, [], list(results["sections"])),
    ):
        ran.clear()
        out.write_text(json.dumps(part | {key: part[key] | value for key, value in change.items()}))
        main(["--out", str(out), "--device", "cpu", *arguments], TINY)
        assert ran == expected
        assert json.loads(out.read_text())["sections"] == results["sections"]
    out.write_text("{ torn")
    ran.clear()
    main(["--out", str(out), "--device", "cpu"], TINY)
    assert ran == list(results["sections"])


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("plan", "rows", 0, "share"), 0.9, "DemoFusion"),
        (("plan", "rows", 1, "share"), 0.61, "Quality"),
        (("plan", "rows", 2, "share"), float("nan"), "Balanced"),
        (("plan", "rows", 3, "name"), "Quick", "Fast"),
        (("overhead", "rows", 0, "share"), 0.031, "4096 px"),
        (("overhead", "exponents", "0.5", "seconds"), 1.5, "exponent"),
        (("overhead", "reads", 1, "reads"), 33, "reads"),
        (("memory", "resident_mib"), 1537.0, "resident"),
        (("tiled", "ratio"), 1.2, "at once"),
        (("tiled", "rows", 0, "largest"), 2.1, "moss"),
        (("tiled", "memory", 1, "beyond_mib"), 120.0, "4096 px"),
        (("gpu", "rows", 0, "ratio"), 1.05, "GPU"),
    ],
)
def test_a_bad_figure_misses_its_bar(
    path: tuple[Any, ...], value: Any, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit 1 and the bar's name; with good figures exit 0."""
    figures = good()
    assert all(bar.met for bar in bars(figures))
    target: Any = figures
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert [named in bar.name for bar in bars(figures) if not bar.met] == [True]
    for name in ("page", "plot"):
        monkeypatch.setattr(speed, name, lambda *of: "")
    for found, code in ((good(), 0), (figures, 1)):
        found["gpu"]["reason"] = ""
        monkeypatch.setattr(speed, "sections", lambda settings, device, found=found: {name: (lambda name=name: found[name]) for name in found})
        assert main(["--out", str(tmp_path / f"{code}.json"), "--device", "cpu"]) == code
    missed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED")]
    assert len(missed) == 1
    assert named in missed[0]


def test_the_plan_counts_demofusion_as_published() -> None:
    """5,600 views, less the dilated ones of the last step, whose weight is nothing."""
    assert PUBLISHED == 5600
    rows = {row["name"]: row for row in plan()["rows"]}
    assert rows["DemoFusion"]["local"] == 50 * (9 + 25 + 49)
    assert rows["DemoFusion"]["dilated"] == 49 * (4 + 9 + 16)
    assert all(row["evaluations"] == row["local"] + row["dilated"] for row in rows.values())
    assert (
        count(Preset(PRESETS["Published"].options, replace(PRESETS["Published"].schedule, sampler="heun")))["evaluations"] > rows["DemoFusion"]["evaluations"]
    )


def test_the_engine_reads_no_value_per_window() -> None:
    """A read makes the host wait for the device: there may be some per step, none per window."""
    few, many = host_reads(128, 0.0, 2), host_reads(256, 0.5, 2)
    assert many["views"] > 4 * few["views"]
    assert many["reads"] == few["reads"]


def test_the_counter_sees_a_read() -> None:
    """The test above would be worth nothing if it did not."""
    with counting() as seen:
        float(torch.ones(3).sum())
    assert seen["aten::_local_scalar_dense"] == 1


def test_figures_of_arithmetic() -> None:
    """An exponent by hand; a stand-in that counts; a machine that multiplies."""
    assert exponent([1, 4, 16], [3, 12, 48]) == pytest.approx(1)
    assert exponent([1, 4, 16], [1, 8, 64]) == pytest.approx(1.5)
    model = StandIn()
    out = model(torch.ones(3, 4, 2, 2), torch.tensor([0.0, 1.0, 3.0]))
    assert out[:, 0, 0, 0].tolist() == pytest.approx([1, 0.5, 0.1])
    assert (model.rows, model.calls) == (3, 1)
    assert model.seconds > 0
    assert matmul_flops(torch.device("cpu"), side=64, repeats=1) > 1e6


def test_unets_against_diffusers_own_pipeline() -> None:
    """What runs on a GPU, with UNets so small that a CPU can: every window batch has the engine, the bare UNet and the pipeline."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from bench.speed.gpu import measure_unet
    from bench.speed.unets import SD_15, SDXL

    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "block_out_channels": (32, 32), "layers_per_block": 1}
    cpu = torch.device("cpu")
    rows = measure_unet(SD_15._replace(arguments=SD_15.arguments | plain), cpu, torch.float32, 128, (1, 4), 1, True)
    small = {"transformer_layers_per_block": 1, "attention_head_dim": 8}
    rows += measure_unet(SDXL._replace(window=16, arguments=SDXL.arguments | plain | small), cpu, torch.bfloat16, 32, (3,), 1, False)
    assert [(row["unet"], row["window_batch"], "panorama_view_s" in row) for row in rows] == [("SD 1.5", 1, True), ("SD 1.5", 4, True), ("SDXL", 3, False)]
    assert all(value > 0 for row in rows for key, value in row.items() if key.endswith("_s"))
