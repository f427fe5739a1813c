"""A whole small benchmark: made in pieces, continued, summarised and held against its bars."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import bench.quality.__main__ as quality
from apt_ext.demo.model import WEIGHTS
from apt_ext.options import Options, published
from bench.quality.bars import BARS, check_bars
from bench.quality.making import make
from bench.quality.measuring import measure
from bench.quality.page import page
from bench.quality.pictures import keep, load_bases, open_model, true_pictures
from bench.quality.runner import make_tasks, results_of, run_chunk, run_tasks
from bench.quality.settings import BASELINES, Setting, all_settings, key_of, reference_of
from bench.quality.store import append, length, load
from bench.quality.summary import MEASURES, resamples, summarise
from bench.quality.tasks import Task, evaluations, plan_of

SHORT = Options(steps=3, overlap=0.0)
REFERENCE = Setting("DemoFusion as published", "methods", published(SHORT))
ROWS = (
    *BASELINES,
    REFERENCE,
    Setting("APT", "methods", SHORT),
    Setting("plain", "methods", published(Options(method="multidiffusion", phases="direct", steps=3)), how="whole", beside="APT"),
    Setting("the same again", "samplers", replace(SHORT, window_batch=5)),
)


@pytest.fixture(scope="module")
def bench():
    return open_model(WEIGHTS)


@pytest.fixture(scope="module")
def tasks(bench):
    return make_tasks(ROWS, [bench], [2], ["encoded", "generated"], [1])


@pytest.fixture(scope="module")
def work(tasks, tmp_path_factory):
    """A work folder with four pictures of everything, made by two runs: the first is too short to get anywhere but its first two."""
    folder = tmp_path_factory.mktemp("bench")
    assert run_tasks(tasks, 2, 2, folder, quiet=True) == 2 * 11
    assert run_tasks(tasks, 4, 4, folder, quiet=True) == 2 * 11
    return folder


@pytest.fixture
def summary(tasks, work, monkeypatch):
    monkeypatch.setattr("bench.quality.summary.reference_of", lambda setting: REFERENCE)
    return summarise(tasks, 4, work)


def row_named(summary, name, base="encoded"):
    return next(row for row in summary["rows"] if (row["name"], row["base"]) == (name, base))


def test_nothing_is_done_twice_and_equal_content_once(tasks, work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.np?")}
    assert run_tasks(tasks, 4, 4, work, quiet=True) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.np?")} == before
    assert len(list((work / "made").iterdir())) == len({task.key for task in tasks}) == 11
    assert len(tasks) == 13


def test_a_new_version_of_the_measures_makes_no_picture_anew(tasks, work, monkeypatch):
    """Also where the batch does not fit what was made."""
    task = next(task for task in tasks if task.setting.name == "APT" and task.base == "encoded")
    monkeypatch.setattr("bench.quality.runner.VERSION", 99)
    monkeypatch.setattr("bench.quality.runner.make", lambda *args: pytest.fail("made anew"))
    assert run_tasks([task], 4, 3, work, quiet=True) == 4
    again = results_of(task, work)
    monkeypatch.undo()
    for name, value in results_of(task, work).items():
        np.testing.assert_allclose(value, again[name], atol=2e-3, rtol=2e-3)


def test_pictures_that_were_made_but_not_measured_are_taken_up(tasks, work, tmp_path):
    task = next(task for task in tasks if task.setting.name == "APT" and task.base == "encoded")
    whole = load(work / "made" / f"{task.key}.npz")
    append(tmp_path / "made" / f"{task.key}.npz", {name: value[:1] for name, value in whole.items()}, 0)
    assert run_tasks([task], 2, 2, tmp_path, quiet=True) == 2
    assert np.array_equal(results_of(task, tmp_path)["seconds"][:1], whole["seconds"][:1])
    assert len(results_of(task, tmp_path)["seconds"]) == 2


def test_a_run_without_time_stops_before_its_first_picture(tasks, tmp_path):
    assert run_tasks(tasks, 4, 4, tmp_path, minutes=0.0, quiet=True) == 0


def chunk(task, numbers, work):
    """Made and measured by themselves, whatever is in the work folder."""
    bases = load_bases(task.base, task.bench, numbers, work)
    made = make(task, bases, work)
    return made | measure(task, bases, torch.from_numpy(made["latent"]), work)


def test_a_picture_does_not_depend_on_its_batch(tasks, work):
    for name in ("APT", "DemoFusion as published"):
        task = next(task for task in tasks if task.setting.name == name and task.base == "encoded")
        stored, alone = results_of(task, work), chunk(task, [3], work)
        for value in ("agreement", "structure", "seams", "spectrum", "monotonicity", "windows", "curve"):
            np.testing.assert_allclose(alone[value][0], stored[value][3], atol=2e-3, rtol=2e-3)
        assert not np.allclose(stored["agreement"][2], stored["agreement"][3])


def test_another_seed_makes_another_picture(tasks, work):
    task = next(task for task in tasks if task.setting.name == "APT" and task.base == "encoded")
    other = replace(task, seed=2)
    assert other.key != task.key
    assert not np.allclose(chunk(other, [0], work)["agreement"], results_of(task, work)["agreement"][:1], atol=1e-3)


def test_the_measured_exponent_runs_one_picture_at_a_time(bench, tasks, work, tmp_path):
    task = Task(Setting("auto", "gamma", replace(SHORT, gamma="auto")), 2, "encoded", bench, 1)
    assert run_tasks([task], 2, 8, tmp_path, quiet=True) == 2
    assert len(results_of(task, tmp_path)["agreement"]) == 2


def test_evaluations_are_those_of_the_plan(tasks, work):
    for task in tasks:
        assert set(results_of(task, work)["evaluations"]) == {evaluations(task)}
    whole = next(task for task in tasks if task.setting.how == "whole")
    assert evaluations(whole) == 2 * 4  # two of three steps, each as large as four windows


def test_guidance_counts_in_the_progress_and_not_in_the_evaluations(bench, tmp_path):
    task = Task(Setting("guided", "guidance", SHORT, guidance=1.5), 2, "encoded", bench, 1)
    told = []
    assert run_chunk(task, [0, 1], tmp_path, told.append) == 2
    assert sum(told) == 2 * 2 * evaluations(task) == 2 * 2 * results_of(task, tmp_path)["evaluations"][0]


def test_the_network_s_passes_are_counted_where_guidance_is_left_out_below_a_level(bench, tmp_path):
    sigmas = plan_of(Task(Setting("guided", "guidance", SHORT, guidance=1.5), 2, "encoded", bench, 1)).sigmas
    between = float(sigmas[-2] * 1.01)  # only the last step's noise is below it
    passes = {}
    for above in (0.0, between, 100.0):
        task = Task(Setting("guided", "guidance", SHORT, guidance=1.5, guided_above=above), 2, "encoded", bench, 1)
        run_chunk(task, [0], tmp_path)
        found = results_of(task, tmp_path)
        passes[above] = int(found["passes"][0])
        assert found["evaluations"][0] == evaluations(task)
    assert passes[0.0] == 2 * evaluations(task)
    assert passes[100.0] == evaluations(task)
    assert passes[100.0] < passes[between] < passes[0.0]


def test_the_summary_has_every_row_with_intervals_and_verdicts(summary):
    assert {(row["name"], row["base"]) for row in summary["rows"]} == {(s.name, b) for s in ROWS for b in ("encoded", "generated")} - {
        ("truth, autoencoded", "generated"),
        ("truth, as rendered", "generated"),
    }
    assert summary["missing"] == []
    assert json.loads(json.dumps(summary)) == summary
    row = row_named(summary, "APT")
    assert set(row["measures"]) == set(row["against"]["differences"]) == set(MEASURES)
    for name, value in row["measures"].items():
        assert value["low"] <= value["high"], name
    assert {d["verdict"] for d in row["against"]["differences"].values()} <= {"better", "worse", "not told apart"}
    assert [len(part["steps"]) for part in row["curve"]] == [2]
    assert "against" not in row_named(summary, "DemoFusion as published")
    assert row_named(summary, "the same again")["measures"] == row["measures"]


def test_a_row_s_own_question_is_answered_by_paired_differences(summary, tasks, work):
    beside = row_named(summary, "plain")["beside"]
    assert (beside["name"], beside["pictures"]) == ("APT", 4)
    per_picture = [
        results_of(next(task for task in tasks if task.setting.name == name and task.base == "encoded"), work)["agreement"] for name in ("plain", "APT")
    ]
    assert beside["differences"]["agreement"]["mean"] == pytest.approx(float((per_picture[0] - per_picture[1]).mean()), abs=1e-4)
    assert "beside" not in row_named(summary, "APT")
    assert "| plain | APT | 4 |" in page({**summary, "bars": []}, [])


def test_the_truth_scores_as_the_truth(summary):
    truth, bicubic = row_named(summary, "truth, autoencoded")["measures"], row_named(summary, "bicubic latent")["measures"]
    for name in ("spectrum_below", "spectrum_above", "repetition", "monotonicity"):
        assert truth[name]["mean"] == 0
    assert row_named(summary, "truth, as rendered")["measures"]["structure"]["mean"] == pytest.approx(1)
    assert bicubic["spectrum_above"]["mean"] < -0.1
    assert bicubic["monotonicity"]["mean"] > 0.2
    against = row_named(summary, "truth, autoencoded")["against"]["differences"]
    assert against["spectrum_above"]["mean"] < 0


def test_the_kernel_distance_finds_the_enlarged_latent_far_from_the_truth(bench, work, tmp_path):
    (tmp_path / "renders").symlink_to(work / "renders")  # half of them are there already
    tasks = make_tasks(BASELINES, [bench], [2], ["encoded"], [1])
    assert run_tasks(tasks, 8, 8, tmp_path, quiet=True) == 8 * 4
    summary = summarise(tasks, 8, tmp_path)
    truth, bicubic = row_named(summary, "truth, autoencoded")["measures"], row_named(summary, "bicubic latent")["measures"]
    for name in ("kernel_windows", "kernel_whole"):
        assert truth[name]["mean"] == 0
        assert bicubic[name]["low"] > 0


def test_what_is_missing_is_said_and_a_bar_that_is_not_measured_is_missed(summary, tasks, work):
    assert {entry["pictures"] for entry in summarise(tasks, 5, work)["missing"]} == {4}
    found = check_bars(summary)
    assert [bar["found"] for bar in found if "kernel distance" in bar["bar"]] == ["not measured"] * len(BARS)
    assert not any(bar["met"] for bar in found if "kernel distance" in bar["bar"])


def measured(name, verdict, pictures=4):
    difference = {"kernel_windows": {"mean": -1.0, "low": -2.0, "high": -0.5, "verdict": verdict}}
    row = {"group": "presets", "name": name, "scale": 4, "base": "encoded", "model": "m", "seed": 1, "pictures": pictures}
    return row | {"against": {"pictures": pictures, "differences": difference}}


@pytest.mark.parametrize(
    ("name", "verdict", "pictures", "met"),
    [
        ("Quality", "better", 4, True),
        ("Quality", "not told apart", 4, False),
        ("Quality", "better", 3, False),
        ("Balanced", "not told apart", 4, True),
        ("Balanced", "worse", 4, False),
        ("Fast", "worse", 4, True),
        ("Fast", "worse", 3, False),
    ],
)
def test_bars_on_quality(name, verdict, pictures, met):
    summary = {"rows": [measured(name, verdict, pictures)], "models": [{"sha256": "m"}], "seeds": [1], "count": 4}
    (bar,) = [bar for bar in check_bars(summary) if "kernel" in bar["bar"] and bar["bar"].startswith(name)]
    assert bar["met"] is met


def test_bars_hold_for_the_first_model_and_seed_and_for_what_else_was_run_in_full_at_their_scale():
    worse = measured("Quality", "worse")
    rows = [measured("Quality", "better"), worse | {"seed": 2}, worse | {"model": "n", "scale": 2}, worse | {"model": "n", "seed": 2, "pictures": 3}]
    summary = {"rows": rows, "models": [{"sha256": "m"}, {"sha256": "n"}], "seeds": [1, 2], "count": 4}
    found = {bar["bar"].split("bases, ")[1].split(":")[0]: bar["met"] for bar in check_bars(summary) if bar["bar"].startswith("Quality, kernel")}
    assert found == {"model m, seed 1": True, "model m, seed 2": False}


def test_the_grid_has_every_group_once_and_no_name_twice():
    rows = all_settings()
    assert len({(s.group, s.name) for s in rows}) == len(rows)
    assert {s.group for s in all_settings(("gamma",))} == {"baselines", "gamma"}
    with pytest.raises(ValueError, match="'nonsense' does not exist"):
        all_settings(("nonsense",))
    for setting in rows:
        reference = reference_of(setting)
        assert any((s.group, s.name) == (reference.group, "DemoFusion as published") and s.options == reference.options for s in rows)
        beside = [other for other in rows if (other.group, other.name) == (setting.group, setting.beside)]
        assert len(beside) == bool(setting.beside)
        assert all(set(setting.scales) <= set(other.scales) for other in beside)


def test_a_key_is_made_of_what_changes_the_picture():
    def key(options, **given):
        return key_of(Setting("a", "b", options, **given), 2, "encoded", "m", 1)

    assert key(Options()) == key(Options(window_batch=3)) == key(Options(reanchor="on")) == key(Options(blur=1)) == key(Options(words=0.0))
    others = {
        key(Options(), guidance=1.5, guided_above=1.0),
        key(Options(tolerance=0.0)),
        key(Options(), sampler="dpmpp_2m"),
        key(Options(), how="whole"),
        key(Options(), guidance=1.5),
    }
    assert len(others | {key(Options()), key(Options(matching=0.0))}) == 7


def test_pictures_are_the_same_for_every_count_and_balanced_over_the_styles(bench, tmp_path):
    few, many = load_bases("encoded", bench, range(2), tmp_path), load_bases("encoded", bench, range(4), tmp_path)
    torch.testing.assert_close(few.latent, many.latent[:2], atol=1e-5, rtol=0)
    assert many.style.tolist() == [0, 1, 2, 3]
    assert not torch.equal(true_pictures("encoded", [0], 64, tmp_path), true_pictures("reference", [0], 64, tmp_path))


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
    weights = resamples(32)
    assert {tuple(w) for w in weights.reshape(-1, 8, 4).sum(1).tolist()} == {(8, 8, 8, 8)}
    assert weights[0].tolist() == [1] * 32
    assert set(weights.sum(1).tolist()) == {32}
    assert float(weights[1:].mean()) == pytest.approx(1)
    assert len({tuple(w) for w in weights.tolist()}) == 1001


def test_the_command_writes_the_summary_and_fails_on_missed_bars(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.quality.settings.groups", lambda: {"baselines": list(BASELINES), "methods": [REFERENCE]})
    out = tmp_path / "docs" / "quality.json"
    assert quality.main(["--work", str(work), "--out", str(out), "--count", "4", "--scales", "2", "--bases", "encoded"]) == 1
    assert len(json.loads(out.read_text())["rows"]) == 4
    assert "MISSED Quality, kernel distance" in capsys.readouterr().out
