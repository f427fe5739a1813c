"""A checkpoint's picture by two processes is that of one, words per window, tiles and ControlNets included."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apt_ext.checkpoints import latents
from apt_ext.demo.cli import main
from tests.checkpoints.control_nets import saved_control

ROOT = Path(__file__).parents[2]


def test_the_tiles_of_a_picture_are_dealt_out(opened, some, monkeypatch):
    """Both ways, through the one deal that the windows go through as well; the picture is that of the tiles made here."""
    monkeypatch.setattr(latents, "TILE", 16)
    monkeypatch.setattr(latents, "HALO", 4)
    model, picture = opened("sdxl"), some(1, 3, 8 * 40, 8 * 24).clamp(-1, 1)
    z = model.encode(picture)
    alone, dealt = (z, model.decode(z)), []

    def deal(function, items):
        dealt.append(len(items))
        return map(function, items)

    monkeypatch.setattr(model.ranks, "map", deal)
    assert torch.equal(model.encode(picture), alone[0])
    assert torch.equal(model.decode(z), alone[1])
    assert dealt == [count for count in dealt[::2] for _ in "ab"], "once for what their normalisation shares, and once for the picture"
    assert len(dealt) == 4
    assert min(dealt) > 4


@pytest.mark.parametrize(("kind", "method"), [("sdxl", "accdiffusion"), ("sd3", "demofusion")])
def test_two_processes_make_the_file_of_one(checkpoints, opened, photo, tmp_path, kind, method):
    """Words per window, and the latents of a ControlNet's pictures."""
    job = ["upscale", str(photo), "--model", str(checkpoints(kind)), "--scale", "2.5", "--steps", "8", "--quiet", "--window-batch", "1"]
    job += ["--prompt", "a red cat, sleeping", "--negative", "fog", "--method", method]
    if kind == "sd3":
        job += ["--control", f"{saved_control(opened(kind).network, kind, tmp_path / 'net')}:0.7:0-80%"]
    job.append("-o")
    assert main([*job, str(tmp_path / "one")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "apt_ext", *job, str(tmp_path / "two")]
    made = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=200)[1] for process in made]
    finally:
        for process in made:
            process.kill()
    assert [process.returncode for process in made] == [0, 0], said
    one, two = ({path.suffix: path for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one[".png"].read_bytes() == two[".png"].read_bytes()
    report = json.loads(two[".json"].read_text())
    assert report["ranks"] == 2
    assert min(report["evaluations_by_rank"]) > 0.25 * report["window_evaluations"]
