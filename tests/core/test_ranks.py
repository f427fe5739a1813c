"""Several processes make the picture of one, bit for bit, and stop together."""

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from apt_ext.core.ranks.ideal import ideal_speedup
from apt_ext.core.ranks.launch import Place, joined, own_device, place_of
from apt_ext.core.ranks.ranks import ALONE
from apt_ext.core.ranks.status import LENGTH, RankError, State, Status, caused_by, made_from
from tests.core.rank_jobs import BATCHES, CASES, METHODS, SAMPLERS, plan_of

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(command, folder, count, seconds):
    """The exit statuses of so many processes; none is left after `seconds`."""
    common = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    made = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.rank_jobs", command, str(folder)], cwd=ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, until - time.monotonic())) for process in made]
    finally:
        for process in made:
            process.kill()


def test_one_to_four_processes_make_the_same_latents_bit_for_bit(tmp_path):
    """Every two of a method, a kind of sampler and a window batch; one process is the engine without any ranks."""
    parts = (METHODS, SAMPLERS, BATCHES)
    assert all({(case[i], case[k]) for case in CASES} == set(product(parts[i], parts[k])) for i, k in combinations(range(3), 2))
    assert start("alike", tmp_path, 4, 240) == [0] * 4
    runs = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    assert sorted(runs) == ["1_0", "2_0", "2_1", "3_0", "3_1", "3_2", "4_0", "4_1", "4_2", "4_3"]
    alone = runs["1_0"]["found"]
    assert len(alone) == len(CASES) + 5
    for name, run in runs.items():
        assert [key for key, latent in run["found"].items() if not torch.equal(latent, alone[key])] == [], name
    by_batch = [alone[f"demofusion euler {batch}"] for batch in (1, 3)]
    assert not torch.equal(*by_batch), "the model's last bits depend on the batch, so that a batch cut by rank would show"
    for world in "234":
        calls = [run["calls"] for name, run in runs.items() if name.startswith(world)]
        assert sum(calls) == runs["1_0"]["calls"], "nothing is evaluated twice"
        assert max(calls) < 0.75 * sum(calls)


def test_whatever_happens_to_one_process_ends_all_in_seconds(tmp_path):
    started = time.monotonic()
    assert start("trouble", tmp_path, 3, 120)[1] == -9
    assert time.monotonic() - started < 100
    said = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for name, own, others in (
        ("interrupt", "KeyboardInterrupt: ", "KeyboardInterrupt: process {} of 3 was stopped"),
        ("memory", "OutOfMemoryError: no room", "OutOfMemoryError: process {} of 3 is out of memory: no room"),
        ("refusal", "ValueError: such a thing", "ValueError: process {} of 3: such a thing"),
        ("bug", "KeyError: 'key'", "RankError: process {} of 3 failed (KeyError: 'key', rank_jobs.py line"),
    ):
        for where, guilty in (("in a call", 1), ("between calls", 2)):
            for rank in range(3):
                got = said[rank][f"{name} {where}"]
                assert got.startswith(own if rank == guilty else others.format(guilty + 1)), got
                assert got.endswith(" after 1"), "the first phase was finished"
    for rank in range(3):
        assert said[rank]["signal"].startswith("KeyboardInterrupt: ")
        assert said[rank]["halved"] == "True"
        assert "no longer hold the same picture" in said[rank]["apart"]
        assert "no longer do the same" in said[rank]["another count"]
        assert said[rank]["numbers"] == "[-1, 0, 3]"
    for rank in (0, 2):
        assert said[rank]["death"].startswith("RankError: one of the 3 processes has ended before the job was done")
        assert said[rank]["death"].endswith(" after 1")


def test_one_process_pays_nothing():
    assert isinstance(ALONE.map(torch.zeros, [1]), map)
    assert ALONE.numbers(5) == [5]
    ALONE.check_alike(torch.zeros(1))
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError
    with joined(Place()) as ranks:
        assert ranks is ALONE


def test_a_status_says_what_it_was_given():
    status = Status(State.REFUSED, -5, 2**62 - 1, 2, 1, (1, 4, 300, 7), (0, 2, 3, 1), "größer als " + "x" * 9)
    assert status.packed().shape == Status().packed().shape == (LENGTH,)
    assert Status.unpacked(status.packed()) == status
    assert Status.unpacked(Status(text="ä" * 400).packed()).text.startswith("ä" * 150)


def test_a_lack_of_memory_is_known_whatever_says_it():
    assert caused_by(MemoryError())[0] == caused_by(RuntimeError("DefaultCPUAllocator: can't allocate memory"))[0] == State.MEMORY
    assert isinstance(made_from(Status(State.FAILED, text="x"), 1, 2), RankError)


GIVEN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set, but no launcher has set RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start it by: torchrun"),
        ({"RANK": "0"}, "RANK=0 is set, but no launcher has set WORLD_SIZE"),
        ({**GIVEN, "RANK": "one"}, "RANK=one is no whole number"),
        ({**GIVEN, "RANK": "4"}, "RANK=4 LOCAL_RANK=1 do not fit WORLD_SIZE=4"),
        ({**GIVEN, "LOCAL_RANK": "2"}, "do not fit"),
    ],
)
def test_a_broken_launcher_is_one_sentence(environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        place_of(environment)


def test_a_launcher_says_where_a_process_stands():
    assert place_of({}) == place_of({"WORLD_SIZE": "1"}) == Place()
    assert place_of(GIVEN) == Place(1, 4, 1, 2)


def test_a_process_that_is_left_alone_says_so(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(ValueError, match="process 1 of 2 did not find the others"), joined(Place(0, 2, 0, 2), timedelta(seconds=1)):
        pass


@pytest.mark.parametrize(
    ("name", "gpus", "world", "device"),
    [("auto", 0, 4, "auto"), ("cpu", 4, 4, "cpu"), ("auto", 4, 4, "cuda:2"), ("cuda", 8, 4, "cuda:2"), ("cuda:1", 4, 1, "cuda:1"), ("cuda", 0, 4, "cuda")],
)
def test_each_process_takes_a_gpu_of_its_own(name, gpus, world, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert own_device(name, Place(2 if world > 1 else 0, world, 2 if world > 1 else 0, world)) == device


@pytest.mark.parametrize(("name", "gpus", "sentence"), [("cuda:1", 4, "'cuda:1' is one device, and 4 processes"), ("auto", 2, "this machine has 2 GPUs")])
def test_processes_do_not_share_a_gpu(name, gpus, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=sentence):
        own_device(name, Place(2, 4, 2, 4))


@pytest.mark.parametrize("method", ["multidiffusion", "demofusion"])
def test_the_ideal_counts_rounds(method):
    alone = plan_of(method, "euler", 1)
    assert ideal_speedup(alone, 1) == 1
    assert 1.5 < ideal_speedup(alone, 2) <= 2
    assert ideal_speedup(alone, 1024) == alone.evaluations / sum(bool(n) for phase in alone.views for step in phase for n in step)
    assert ideal_speedup(plan_of(method, "euler", 1024), 4) == 1, "a single batch cannot be shared"
