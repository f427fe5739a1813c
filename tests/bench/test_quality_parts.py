"""The benchmark's parts, each by itself: its grid and keys, its pictures, its files, its bars and intervals."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apt_ext.options import PRESETS, Options, Schedule
from bench.quality.bars import EDGES, KERNEL, LOSS, MISSING, misses
from bench.quality.front import presets_table
from bench.quality.pictures import LARGEST, PHOTO_FOLDER, PHOTOGRAPHS, PIXELS, keep, true_pictures
from bench.quality.results import read
from bench.quality.settings import Setting, all_settings, key_of
from bench.quality.statistics import mean_of, resamples
from bench.quality.store import append, length, load
from bench.tables import put

DOCS = Path(__file__).parents[2] / "docs"


def test_the_kernel_distance_s_interval_is_twice_as_wide_as_that_of_its_parts():
    parts = [1.0, 2.0, 3.0, 5.0]
    row = {"kind": "photographs", "values": {"psnr": parts}, "kernel": {"4": parts}}
    kernel, plain = mean_of(row, "kernel"), mean_of(row, "psnr")
    assert kernel.mean == plain.mean == 2.75
    assert kernel.high - kernel.low == pytest.approx(2 * (plain.high - plain.low))


def found(**changes):
    return {"edges": EDGES, "loss": LOSS, "kernel": KERNEL, "missing": MISSING - 0.01, "agreement": 30.0, **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "detailed", "missed"),
    [
        ({}, "photographs", True, 0),
        ({"edges": 0.79}, "scenes", False, 1),
        ({"loss": 2.01}, "scenes", False, 1),
        ({"kernel": 0.61, "missing": 0.4}, "scenes", False, 0),
        ({"kernel": 0.61, "missing": 0.4}, "scenes", True, 2),
        ({"agreement": 29.9}, "photographs", False, 1),
        ({"agreement": 29.9}, "scenes", False, 0),
        ({"kernel": float("nan"), "missing": float("nan"), "edges": float("nan")}, "scenes", True, 3),
    ],
)
def test_bars_are_met_at_their_value_and_missed_beyond_it(changes, kind, detailed, missed):
    assert sum(not check.met for check in misses(found(**changes), kind, detailed)) == missed


def test_the_presets_table_of_the_docs_is_what_the_benchmark_found():
    """Written by `python -m bench.quality --only-summary`."""
    found = read(DOCS / "bench" / "quality.json")
    written = presets_table(found, found["models"][0]["sha256"])
    assert f"\n{written}\n\n" in (DOCS / "quality.md").read_text()
    assert put(written, "before\n| preset | scale |\n\n| preset |\n") == "before\n| preset | scale |\n\n| preset |\n"
    head = written.split("\n", 1)[0]
    assert put(written, f"before\n\n{head}\n| old |\n\nafter\n") == f"before\n\n{written}\n\nafter\n"


def test_the_grid_has_every_group_once_and_no_name_twice():
    rows = all_settings()
    assert len({(s.group, s.name) for s in rows}) == len(rows)
    assert {s.group for s in all_settings(("gamma",))} == {"baselines", "gamma"}
    with pytest.raises(ValueError, match="'nonsense' does not exist"):
        all_settings(("nonsense",))
    for setting in rows:
        beside = [other for other in rows if (other.group, other.name) == (setting.group, setting.beside)]
        assert len(beside) == bool(setting.beside)
        assert all(set(setting.scales) <= set(other.scales) for other in beside)
    names = {setting.name for setting in rows}
    assert names >= {
        "Lanczos",
        "Lanczos, autoencoded",
        "truth, autoencoded",
        "DemoFusion as published",
        "AccDiffusion as published",
        *(set(PRESETS) - {"Published"}),
    }


def test_a_key_is_made_of_what_changes_the_picture():
    def key(options, **given):
        return key_of(Setting("a", "b", options, **given), 2, "scenes", "world", "m", 1)

    same = [Options(), Options(window_batch=3), Options(reanchor="on"), Options(blur=1.0), Options(word_threshold=0.0)]
    assert len({key(options) for options in same}) == 1
    windows = Options(method="multidiffusion")
    assert key(windows) == key(replace(windows, dilated_decay=2.0, skip_residual=False)) != key(Options())
    others = {
        key(Options(tolerance=0.0)),
        key(Options(upscaler="latent")),
        key(Options(skip_residual=False)),
        key(Options(colour_fix=1.0)),
        key(Options(), schedule=Schedule(sampler="euler")),
        key(Options(), guidance=1.5),
        key(Options(), how="truth"),
    }
    assert len(others | {key(Options()), key(Options(matching=0.0))}) == 9


def test_the_input_is_the_shrunk_truth_and_the_first_pictures_are_the_same_for_every_count(tmp_path):
    for kind in ("scenes", "photographs"):
        large, small = (true_pictures(kind, range(4), side, tmp_path) for side in (LARGEST, PIXELS))
        shrunk = torch.nn.functional.interpolate(large, size=PIXELS, mode="area")
        assert float((shrunk - small).abs().max()) <= 1 / 255 + 1e-6
        assert torch.equal(true_pictures(kind, [2], PIXELS, tmp_path)[0], small[2])
    assert not torch.equal(true_pictures("scenes", [0], 64, tmp_path), true_pictures("reference", [0], 64, tmp_path))


def test_every_photograph_is_there_large_enough_and_attributed():
    files = {path.stem for path in PHOTO_FOLDER.glob("*.webp")}
    assert set(PHOTOGRAPHS) == files
    assert len(PHOTOGRAPHS) == len(files)
    assert true_pictures("photographs", range(len(files)), LARGEST, Path()).shape == (len(files), 3, LARGEST, LARGEST)
    rows = re.findall(
        r"^\| (\w+)\.webp \| [^|]+ \| [^|]+ \| (public domain|CC0 1\.0|CC BY 4\.0) \| [^|]+ \|", (PHOTO_FOLDER / "README.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in rows} == files


def test_what_was_kept_is_not_made_again(tmp_path):
    path = tmp_path / "a" / "x.npy"
    assert keep(path, lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert keep(path, lambda: pytest.fail("made again")).tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_results_grow_and_a_kill_while_writing_leaves_the_old_ones(tmp_path):
    path = tmp_path / "a" / "x.npz"
    assert (load(path), length(path)) == ({}, 0)
    append(path, {"v": np.arange(2)}, 0)
    append(path, {"v": np.arange(2, 5)}, 2)
    append(path, {"v": np.arange(9)}, 2)  # by another process, too late
    with pytest.raises(ValueError, match="allow_pickle"):
        append(path, {"v": np.array([object()])}, 5)
    assert load(path)["v"].tolist() == [0, 1, 2, 3, 4]
    assert length(path) == 5


def test_resamples_begin_with_the_sample_and_are_repeatable():
    weights = resamples("scenes", 16)
    assert {tuple(w) for w in weights.reshape(-1, 4, 4).sum(1).tolist()} == {(4, 4, 4, 4)}
    assert weights[0].tolist() == [1] * 16
    assert float(weights[1:].mean()) == pytest.approx(1)
    loose = resamples("photographs", 16)
    assert set(loose.sum(1).tolist()) == {16}
    assert len({tuple(w) for w in loose.reshape(-1, 4, 4).sum(1).tolist()}) > 100
