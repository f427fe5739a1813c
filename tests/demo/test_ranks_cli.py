"""The command line as several processes, as torchrun starts it: the same files as by one, one voice, and all of them stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apt_ext.core.ranks.ranks import ALONE, Ranks
from apt_ext.core.ranks.status import OutOfMemory, RankError
from apt_ext.demo.cli import _said, main

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "apt_ext"]
LONG = ["--scale", "8", "--steps", "40", "--phases", "double", "--window-batch", "2"]
COMMON = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals, and torchrun has no gloo of this kind there")


@pytest.fixture
def picture(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 255, 45), np.linspace(0, 255, 34))
    path = tmp_path / "photo.png"
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(path)
    return path


def begun(command, **environment):
    """A process; a shell that runs tests in the background has Ctrl-C ignored, and children inherit that."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**COMMON, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def two(*arguments):
    """Two processes without a launcher, so that each of them can be watched."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(one.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "apt_ext", *map(str, arguments)]
    return [begun(command, RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in range(2)]


def ended(processes, seconds=60):
    """(status, stdout, stderr) of each; none is left."""
    try:
        until = time.monotonic() + seconds
        said = [process.communicate(timeout=max(1, until - time.monotonic())) for process in processes]
        return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_for(path, processes):
    until = time.monotonic() + 240
    while not path.exists():
        assert [process.poll() for process in processes] == [None] * len(processes)
        assert time.monotonic() < until
        time.sleep(0.05)


def sentences(errors):
    return [line for line in errors.splitlines() if line.startswith("apt_ext: ")]


def test_two_processes_under_torchrun_write_the_file_of_one(picture, tmp_path):
    job = ["upscale", str(picture), "--scale", "3", "--steps", "8", "--window-batch", "1", "--sampler", "euler_ancestral", "--quiet", "-o"]
    ((status, out, errors),) = ended([begun([*TORCHRUN, *job, str(tmp_path / "two")])], 200)
    assert status == 0, errors
    assert main([*job, str(tmp_path / "one")]) == 0
    name = "photo_demofusion_apt_3x"
    assert (tmp_path / "one" / f"{name}.png").read_bytes() == (tmp_path / "two" / f"{name}.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [f"{name}.json", f"{name}.png"]
    one, report = (json.loads((tmp_path / place / f"{name}.json").read_text()) for place in ("one", "two"))
    assert (one["ranks"], one["evaluations_by_rank"]) == (1, [one["window_evaluations"]])
    assert report["ranks"] == 2
    assert report["window_evaluations"] == one["window_evaluations"] == sum(report["evaluations_by_rank"])
    assert min(report["evaluations_by_rank"]) > 0.3 * report["window_evaluations"]
    assert out.count(f"{name}.png") == 1
    assert errors.count("window evaluations") == 1


def test_pictures_can_be_shared_whole(picture, tmp_path):
    names = ["a/same.png", "b/same.png", "c/other.png"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        Image.open(picture).rotate(len(name) * 40).save(tmp_path / name)
    (tmp_path / "broken.png").write_text("no picture")
    job = ["upscale", *(tmp_path / name for name in [*names, "broken.png"]), "--scale", "1.5", "--steps", "8", "--quiet"]
    (status, out, errors), other = ended(two(*job, "--share", "pictures", "-o", tmp_path / "out"), 200)
    assert status == other[0] == 2
    assert other[1:] == ("", ""), "the first process talks for all"
    assert [line for line in sentences(errors) if "1 of 4 pictures were left out" in line] == sentences(errors) != []
    results = ["other_demofusion_apt_1.5x", "same_demofusion_apt_1.5x", "same_demofusion_apt_1.5x_2"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == results
    assert all(name in out for name in results)
    assert "3 of 4 pictures" in out
    for name in results:
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["ranks"] == 1


def test_ctrl_c_under_torchrun_leaves_the_last_finished_phase(picture, tmp_path):
    out = tmp_path / "out"
    launcher = begun([*TORCHRUN, "upscale", str(picture), *LONG, "-o", str(out)])
    wait_for(out / "photo_demofusion_apt_8x_phase1of3.png", [launcher])
    started = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    ((_, _, errors),) = ended([launcher])
    assert time.monotonic() - started < 25, "the launcher's patience ends at 30"
    assert len(sentences(errors)) == 1
    assert "stopped; the last finished picture is " in sentences(errors)[0]
    assert all("phase" in path.name for path in out.iterdir())
    assert Image.open(out / "photo_demofusion_apt_8x_phase1of3.png").size == (90, 68)


def test_a_process_that_is_killed_ends_the_job_with_a_sentence(picture, tmp_path):
    out = tmp_path / "out"
    processes = two("upscale", picture, *LONG, "-o", out)
    wait_for(out / "photo_demofusion_apt_8x_phase1of3.png", processes)
    processes[1].kill()
    started = time.monotonic()
    (status, _, errors), _ = ended(processes)
    assert time.monotonic() - started < 25
    assert status == 1
    (said,) = sentences(errors)
    assert said.startswith("apt_ext: one of the 2 processes has ended before the job was done; the last finished picture is ")
    assert "Traceback" not in errors
    assert "photo_demofusion_apt_8x_phase1of3.png" in [path.name for path in out.iterdir()]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set, but no launcher has set RANK"),
        ({"RANK": "7", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "do not fit WORLD_SIZE=4"),
    ],
)
def test_a_broken_launcher_is_one_sentence_with_status_2(environment, sentence, picture, tmp_path, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["upscale", str(picture), "-o", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_device_that_does_not_exist_is_said_once_by_two_processes(picture, tmp_path):
    (status, _, errors), other = ended(two("upscale", picture, "--device", "cuda:7", "-o", tmp_path / "out"), 100)
    assert (status, other) == (2, (2, "", ""))
    assert sentences(errors) == ["apt_ext: device 'cuda:7' is one device, and 2 processes are to share it; use auto, cuda or cpu"]
    assert not (tmp_path / "out").exists()


MEMORY = "the memory is used up; use a smaller --window-batch, scale or picture"


@pytest.mark.parametrize(
    ("error", "sentence", "status"),
    [
        (RankError("process 2 of 3 failed (KeyError: 'x')"), "process 2 of 3 failed (KeyError: 'x'); the last finished picture is a.png", 1),
        (KeyError("x"), "process 1 of 3 failed (KeyError: 'x'); the last finished picture is a.png", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), f"{MEMORY}; the last finished picture is a.png", 2),
        (OutOfMemory("process 2 of 3 is out of memory"), f"{MEMORY}; the last finished picture is a.png", 2),
        (KeyboardInterrupt(), "stopped; the last finished picture is a.png", 130),
    ],
)
def test_whatever_ends_several_processes_is_one_sentence(error, sentence, status):
    assert _said(error, [Path("a.png")], Ranks(0, 3)) == (sentence, status)


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemory("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_one_sentence_for_a_single_process_too(error):
    assert _said(error, [], ALONE) == (f"{MEMORY}; nothing was finished, so nothing was written", 2)


def test_what_nobody_foresaw_is_raised_where_there_is_one_process():
    with pytest.raises(KeyError):
        _said(KeyError("x"), [], ALONE)
