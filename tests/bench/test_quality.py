"""A whole small benchmark: made in pieces, continued, written down and held against its bars."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bench.quality.__main__ as quality
import bench.quality.sheet as sheets
from apt_ext.demo.job import run_job, show
from apt_ext.demo.model import WEIGHTS
from apt_ext.demo.pictures import to_picture
from apt_ext.demo.sources import from_picture
from apt_ext.options import Options, Preset, Schedule, published
from bench.quality.bars import SHARES, check_bars
from bench.quality.front import draw_front, front_table
from bench.quality.making import finish, make
from bench.quality.measuring import measure
from bench.quality.page import page, write_page
from bench.quality.pictures import LARGEST, PIXELS, model_of, open_model, true_pictures
from bench.quality.results import collect, find, read, write
from bench.quality.runner import make_tasks, pictures_of, results_of, run_chunk, run_tasks
from bench.quality.settings import BASELINES, Setting
from bench.quality.sheet import make_sheet
from bench.quality.statistics import MEASURES, compare, mean_of, ratio, shared
from bench.quality.store import append, load
from bench.quality.tasks import Task, evaluations, job_of

DOCS = Path(__file__).parents[2] / "docs"
SHORT, STEPS = Options(method="multidiffusion", matching=0.0, gamma=0.0, phases="direct"), Schedule(steps=5, strength=0.4)
PUBLISHED = published(Preset(Options(), Schedule(steps=3, sampler="euler", spacing="normal")))
ROWS = (
    *BASELINES,
    Setting("Fast", "presets", SHORT, STEPS, full=True),
    Setting("DemoFusion as published", "published", PUBLISHED.options, PUBLISHED.schedule),
    Setting("matched", "matching", replace(SHORT, matching=1.0), STEPS),
    Setting("the same again", "matching", replace(SHORT, window_batch=5), STEPS, beside="matched"),
)


@pytest.fixture(scope="module")
def bench():
    return open_model(WEIGHTS)


@pytest.fixture(scope="module")
def tasks(bench):
    return make_tasks(ROWS, [bench], [2], ["scenes", "photographs"], few=2, full=4)


def test_a_further_model_is_measured_where_models_are_compared(bench):
    other = replace(bench, sha256="another")
    made = make_tasks(ROWS, [bench, other], [2], ["scenes"], few=2, full=4)
    names = [[task.setting.name for task in made if task.bench is model] for model in (bench, other)]
    assert names[0] == [row.name for row in ROWS]
    assert names[1] == [row.name for row in ROWS if row.group in ("baselines", "presets")]
    assert 0 < len(names[1]) < len(names[0])


@pytest.fixture(scope="module")
def work(tasks, tmp_path_factory):
    """A work folder with everything, made by two runs."""
    folder = tmp_path_factory.mktemp("bench")
    assert run_tasks([replace(task, count=2) for task in tasks], folder, quiet=True) == 2 * 2 * 7
    assert run_tasks(tasks, folder, quiet=True) == 2 * 2 * 5
    return folder


@pytest.fixture(scope="module")
def results(tasks, work):
    return collect(tasks, work)


def task_named(tasks, name, kind="scenes"):
    return next(task for task in tasks if (task.setting.name, task.kind) == (name, kind))


def row_named(results, name, kind="scenes"):
    return find(results["rows"], name=name, kind=kind)


def test_nothing_is_done_twice_and_equal_content_once(tasks, work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.np?")}
    assert run_tasks(tasks, work, quiet=True) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.np?")} == before
    assert len(list((work / "made").iterdir())) == len({task.key for task in tasks}) == 14
    assert len(tasks) == 16


def test_a_new_version_of_the_measures_makes_no_picture_anew(tasks, work, monkeypatch):
    """Also where the batch does not fit what was made."""
    task = task_named(tasks, "Fast")
    monkeypatch.setattr("bench.quality.runner.VERSION", 99)
    monkeypatch.setattr("bench.quality.runner.make", lambda *args: pytest.fail("made anew"))
    assert run_tasks([task], work, batch=3, quiet=True) == 4
    again = results_of(task, work)
    monkeypatch.undo()
    for name, value in results_of(task, work).items():
        np.testing.assert_allclose(value, again[name], atol=1e-4, rtol=1e-4)


def test_pictures_that_were_made_but_not_measured_are_taken_up(tasks, work, tmp_path):
    task = replace(task_named(tasks, "Fast"), count=2)
    whole = load(work / "made" / f"{task.made_key}.npz")
    append(tmp_path / "made" / f"{task.made_key}.npz", {name: value[:1] for name, value in whole.items()}, 0)
    assert run_tasks([task], tmp_path, quiet=True) == 2
    assert np.array_equal(results_of(task, tmp_path)["seconds"][:1], whole["seconds"][:1])
    assert len(results_of(task, tmp_path)["seconds"]) == 2


def test_a_run_without_time_stops_before_its_first_picture(tasks, tmp_path):
    assert run_tasks(tasks, tmp_path, minutes=0.0, quiet=True) == 0


def test_a_picture_does_not_depend_on_its_batch_and_every_picture_has_its_own_noise(tasks, work):
    task = task_named(tasks, "Fast")
    stored, alone = pictures_of(task, [3], work), finish(task, [3], make(task, [3], work)["pixels"], work)
    assert int(np.abs(alone.astype(int) - stored).max()) <= 1
    np.testing.assert_allclose(measure(task, [3], alone, work)["psnr"], results_of(task, work)["psnr"][3:], atol=0.02)
    other = finish(task, [3], make(replace(task, seed=2), [3], work)["pixels"], work)
    assert int(np.abs(other.astype(int) - stored).max()) > 8
    assert replace(task, seed=2).key != task.key


def test_pictures_are_the_command_line_s_own_and_a_colour_fix_needs_no_second_run(tasks, work, tmp_path, monkeypatch):
    task = task_named(tasks, "Fast", "photographs")
    model, job = model_of(task.bench), job_of(task, 1)
    assert job.options.colour_fix > 0
    source = from_picture(model, to_picture(true_pictures("photographs", [1], PIXELS, work)[0]))
    picture = show(model, source, run_job(model, source, job).latent, job.scale, job.options.colour_fix)
    assert int(np.abs(np.asarray(picture).astype(int) - pictures_of(task, [1], work)[0]).max()) <= 1
    monkeypatch.setattr("bench.quality.runner.make", lambda *args: pytest.fail("made anew"))
    plain = replace(task, setting=replace(task.setting, options=replace(task.setting.options, colour_fix=0.0)))
    assert run_tasks([plain], work, quiet=True) == 4
    assert results_of(plain, work)["agreement"].mean() < results_of(task, work)["agreement"].mean()


def test_evaluations_are_those_of_the_plan(tasks, work):
    for task in tasks:
        assert set(results_of(task, work)["evaluations"]) == {evaluations(task)}
    assert evaluations(task_named(tasks, "Fast")) == 2 * 9
    told = []
    run_chunk(replace(task_named(tasks, "Fast"), seed=3), [0, 1], work, told.append)
    assert told == [18, 18]


def test_results_have_every_row_but_the_truth_and_survive_the_file(results, tasks, tmp_path):
    assert {(row["name"], row["kind"]) for row in results["rows"]} == {(s.name, kind) for s in ROWS if s.how != "truth" for kind in ("scenes", "photographs")}
    assert results["missing"] == []
    path = tmp_path / "docs" / "quality.json"
    write(results, path)
    assert read(path) == json.loads(json.dumps(results))
    lines = [line for line in path.read_text().splitlines() if line.startswith('{"group"')]
    assert len(lines) == len(results["rows"])
    assert max(map(len, lines)) < 1500
    assert set(row_named(results, "Fast")["values"]) | {"kernel"} == set(MEASURES)
    assert row_named(results, "the same again")["values"]["psnr"] == row_named(results, "Fast")["values"]["psnr"][:2]


def test_what_is_missing_is_said(tasks, work):
    more = collect([replace(task, count=8) for task in tasks], work)
    assert {what["name"]: what["pictures"] for what in more["missing"]}.items() >= {"Fast": 4, "Lanczos": 4, "matched": 2}.items()
    assert len(more["missing"]) == 2 * (len(ROWS) - 1)


def test_the_baselines_measure_what_they_are(results, tasks, work):
    truth = results_of(task_named(tasks, "truth"), work)
    assert float(truth["psnr"].min()) > 120
    assert float(np.abs(truth["above"]).max()) < 1e-6
    for kind in ("scenes", "photographs"):
        lanczos, again, coded = (row_named(results, name, kind) for name in ("Lanczos", "Lanczos, autoencoded", "truth, autoencoded"))
        assert mean_of(lanczos, "above").mean < -0.5
        assert mean_of(lanczos, "agreement").mean > 30
        assert mean_of(lanczos, "kernel").mean > mean_of(coded, "kernel").mean
        # Not its edges: at 2x what this autoencoder does to sharp ones moves them as far as a plain enlargement does.
        assert abs(mean_of(coded, "above").mean) < abs(mean_of(again, "above").mean)
        assert mean_of(coded, "psnr").mean > mean_of(again, "psnr").mean


def test_pictures_can_be_looked_at(tasks, work):
    shown = pictures_of(task_named(tasks, "truth", "photographs"), range(4), work)
    assert shown.shape == (4, 2 * PIXELS, 2 * PIXELS, 3)
    true = true_pictures("photographs", range(4), 2 * PIXELS, work)
    assert np.array_equal(shown, ((true + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def test_a_comparison_is_paired_and_says_which_is_better(results):
    fast, lanczos = row_named(results, "Fast"), row_named(results, "Lanczos")
    found, _ = compare(fast, lanczos, "psnr")
    assert found.mean == pytest.approx(np.mean(np.array(fast["values"]["psnr"]) - lanczos["values"]["psnr"]))
    assert found.low <= found.mean <= found.high
    assert compare(fast, fast, "edges") == ((0, 0, 0), "not told apart")
    worse = {**fast, "values": {**fast["values"], "psnr": [v - 1 for v in fast["values"]["psnr"]], "seams": [3.0] * 4}}
    assert compare(worse, fast, "psnr")[1] == "worse"
    assert compare(fast, worse, "psnr")[1] == "better"
    assert compare(worse, fast, "seams")[1] == "worse"
    few = row_named(results, "DemoFusion as published")
    assert shared(few, lanczos) == 2
    assert ratio(few, lanczos, "kernel") == pytest.approx(np.mean(few["kernel"]["2"]) / np.mean(lanczos["kernel"]["2"]))


def test_what_is_not_measured_in_full_misses_its_bars(results):
    checks = check_bars(results)
    assert [check.met for check in checks[: len(SHARES)]] == [
        float(check.found.split(", ")[1][:-1]) <= 100 * share for check, share in zip(checks, SHARES.values(), strict=False)
    ]
    assert not any(check.met for check in checks if "4x" in check.bar)
    assert {check.bar.split(":")[0] for check in checks if "2x" in check.bar and check.found.endswith("of 4")} == {
        f"{name}, 2x, {kind}" for name in ("Balanced", "Quality") for kind in ("scenes", "photographs")
    }
    fast = [check for check in checks if check.bar.startswith("Fast, 2x")]
    assert len(fast) == 2 + 3
    cut = {**results, "rows": [row if row["name"] != "Fast" else {**row, "values": {n: v[:3] for n, v in row["values"].items()}} for row in results["rows"]]}
    assert [check.met for check in check_bars(cut) if check.bar.startswith("Fast, 2x")] == [False, False]


def test_the_file_gives_numbers_once_and_says_all(results, tmp_path):
    path = tmp_path / "quality.json"
    other = [{**row, "model": "another", "seconds": 1.0} for row in results["rows"] if row["group"] == "baselines"]
    again = [{**row, "group": "steps", "name": "matched too"} for row in results["rows"] if row["name"] == "matched"]
    whole = {**results, "rows": [*results["rows"], *again, *other]}
    write(whole, path)
    assert read(path)["rows"] == whole["rows"]
    kept = json.loads(path.read_text())["rows"]
    assert [row.get("same") for row in kept] == [
        *(None for _ in results["rows"]),
        *(["matching", "matched"] for _ in again),
        *(["baselines", row["name"]] for row in other),
    ]
    assert [("values" in row, "kernel" in row) for row in kept] == [("same" not in row, "same" not in row) for row in kept]


def test_the_page_and_the_fronts_hold_what_the_file_holds(results, tmp_path, monkeypatch):
    path = tmp_path / "quality.json"
    monkeypatch.setattr("bench.quality.page.groups", lambda: {"matching": list(ROWS[-2:])})
    write(results, path)
    write_page(path)
    text, plot = path.with_suffix(".md").read_text(), (tmp_path / "quality-front-2x.svg").read_text()
    assert "![quality-front-2x.svg](quality-front-2x.svg)" in text
    assert "| the same again | matched | 2 |" in text
    assert f"{mean_of(row_named(results, 'Fast'), 'psnr').mean:.2f}" in text
    assert "DemoFusion as published" in plot
    model = results["models"][0]["sha256"]
    assert plot == draw_front(results, 2, model)
    line = next(line for line in front_table(results, 2, model).splitlines() if "| Fast |" in line)
    both = [row_named(results, "Fast", kind) for kind in ("scenes", "photographs")]
    assert " / ".join(f"{mean_of(row, 'edges').mean:.3f}" for row in both) in line
    front = next(line for line in front_table(results, 2, model).splitlines() if "| Lanczos |" in line)
    assert "+0.00 / +0.00" in front.replace("-0.00", "+0.00")
    assert "| 1.00 / 1.00 | 1.00 / 1.00 |" in front
    assert "Not measured yet" not in text
    assert "Not measured yet" in page({**results, "missing": [{"group": "g", "name": "n", "scale": 2, "kind": "scenes", "pictures": 1}]}, [])


def test_the_command_writes_the_results_and_fails_on_missed_bars(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.quality.settings.groups", lambda: {"baselines": list(BASELINES), "published": [ROWS[5]]})
    out = tmp_path / "docs" / "quality.json"
    assert quality.main(["--work", str(work), "--out", str(out), "--few", "4", "--full", "4", "--scales", "2"]) == 1
    assert len(read(out)["rows"]) == 2 * 4
    assert "MISSED Quality, 2x, photographs: every bar: measured on 0 pictures of 4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        quality.main(["--few", "3"])
    assert "--few 3 is no multiple of 4 up to 16" in capsys.readouterr().err


def test_a_sheet_shows_each_picture_whole_and_its_busiest_part(tmp_path, monkeypatch, tasks, work, capsys):
    """The part is cut at the same place in every column, pixel by pixel."""
    rng = np.random.default_rng(1)
    true = np.full((LARGEST, LARGEST, 3), 90, np.uint8)
    true[96:224, 120:248] = rng.integers(0, 255, (128, 128, 3))
    other = 255 - true
    sheet = np.asarray(make_sheet({"Lanczos": [Image.fromarray(other)] * 2, "truth": [Image.fromarray(true)] * 2}))
    inside = slice(22 + 128 + 2, 22 + 128 + 2 + 128)
    crops = sheet[inside, 6:134], sheet[inside, 140:268]
    assert np.array_equal(crops[0], 255 - crops[1])
    y, x = next((y, x) for y in range(80, 129) for x in range(80, 129) if np.array_equal(true[y : y + 128, x : x + 128], crops[1]))
    assert abs(y - 96) + abs(x - 120) < 8
    monkeypatch.setattr(sheets, "SCALE", 2)
    monkeypatch.setattr(sheets, "CELL", 64)
    monkeypatch.setattr(sheets, "LARGEST", 2 * PIXELS)
    monkeypatch.setattr(sheets, "COLUMNS", ("Lanczos", "Fast"))
    monkeypatch.setattr(sheets, "NUMBERS", {"scenes": range(2), "photographs": range(1, 2)})
    monkeypatch.setattr(sheets, "all_settings", lambda: list(ROWS))
    assert sheets.main(["--work", str(work), "--out", str(tmp_path / "new")]) == 0
    assert Image.open(tmp_path / "new" / "sheet-scenes.png").size == (6 + 4 * 70, 22 + 2 * 140)


def test_another_task_of_the_same_pictures_is_another_key(bench, tasks):
    task = task_named(tasks, "Fast")
    keys = {replace(task, **change).key for change in ({}, {"scale": 4}, {"kind": "photographs"}, {"seed": 2}, {"bench": replace(bench, sha256="x")})}
    assert len(keys) == 5
    assert replace(task, count=8).key == task.key
    lanczos = Task(BASELINES[0], 2, "scenes", bench, 4)
    assert replace(lanczos, seed=2, bench=replace(bench, sha256="x")).key == lanczos.key
