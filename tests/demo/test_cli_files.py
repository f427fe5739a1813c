"""Files in and out of the command line: profiles, frames, names, one result's own name, many pictures."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from apt_ext.demo.cli import main
from apt_ext.demo.output import Output
from apt_ext.demo.pictures import load_picture, save_picture

FAST = ["--steps", "4", "--scale", "2", "--preset", "fast", "--quiet"]


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@cache
def profile(swapped: bool = False) -> bytes:
    """An RGB profile; with `swapped` the sRGB one with its red and green primaries exchanged, so that numbers mean other colours."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swapped:
        red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
        data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_colours_come_out_under_the_profile_that_they_came_in_with(tmp_path: Path, name: str) -> None:
    gradient().save(tmp_path / "wide.png", icc_profile=profile(swapped=True))
    assert load_picture(tmp_path / "wide.png").profile == profile(swapped=True)
    assert run("upscale", tmp_path / "wide.png", "-o", tmp_path / "out" / name, *FAST) == 0
    made = Image.open(tmp_path / "out" / name)
    assert made.info["icc_profile"] == profile(swapped=True)
    small = np.asarray(made.convert("RGB").resize((40, 24), Image.Resampling.BOX), float)
    assert np.abs(small - np.asarray(gradient(), float)).mean() < 6, "the numbers are the input's, and the profile says what they mean"


def test_grey_and_damaged_profiles_are_not_handed_on(tmp_path: Path) -> None:
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gradient().convert("L").save(tmp_path / "grey.png", icc_profile=grey)
    gradient().save(tmp_path / "damaged.png", icc_profile=b"no profile at all")
    for name in ("grey.png", "damaged.png"):
        picture = load_picture(tmp_path / name)
        assert picture.rgb.size == (40, 24)
        assert picture.profile is None or ImageCms.ImageCmsProfile(io.BytesIO(picture.profile)).profile.xcolor_space.strip() == "RGB"
    assert load_picture(tmp_path / "damaged.png").profile is None


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40)
    assert load_picture(tmp_path / "a.jpg").rgb.size == (40, 24)
    gradient().save(tmp_path / "b.png", exif=b"MM\0*garbage")
    assert load_picture(tmp_path / "b.png").rgb.tobytes() == gradient().tobytes()
    gradient().save(tmp_path / "c.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "c.jpg").rgb.size == (40, 24)


def test_the_first_of_several_frames_is_taken_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [gradient(), gradient().rotate(180)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "moving.gif").frames == 2
    assert run("upscale", tmp_path / "moving.gif", "-o", tmp_path / "out", *FAST) == 0
    assert "the first of its 2 pictures is enlarged" in capsys.readouterr().err


def test_a_result_may_be_named(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    for _ in range(2):
        assert run("upscale", tmp_path / "a.png", "-o", tmp_path / "new" / "result.jpg", *FAST) == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["result.jpg", "result.json"]
    made = Image.open(tmp_path / "new" / "result.jpg")
    assert made.size == (80, 48)
    comment = made.getexif().get_ifd(0x8769)[0x9286]
    assert "APT scale: 2.0" in comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


@pytest.mark.parametrize(
    ("command", "place", "sentence"),
    [
        ("upscale", "a.png", "would be overwritten by its own result; use another name for -o"),
        ("upscale", "b.tiff", "is of a format that is not written; use a name in .png"),
        ("upscale", "b.jpg", "cannot hold the transparency of"),
        ("demo", "sheet.png", "is a file's name and demo writes several; use a folder for -o"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, command: str, place: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    picture = gradient()
    picture.putalpha(Image.new("L", picture.size, 128))
    picture.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert run(command, tmp_path / "a.png", "-o", tmp_path / place, "--scale", 2, "--quiet") == 2
    assert sentence in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_folder_and_files_are_enlarged_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    gradient().save(tmp_path / "in" / "one.png")
    gradient().save(tmp_path / "in" / "two.jpg")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "broken.png").write_text("no picture")
    gradient(30, 30).save(tmp_path / "three.webp")
    assert run("upscale", tmp_path / "in", tmp_path / "three.webp", "-o", tmp_path / "out", *FAST) == 2
    shown = capsys.readouterr()
    made = [f"{stem}_multidiffusion_apt_2x" for stem in ("one", "three", "two")]
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.png")) == made
    assert "3 of 4 pictures in" in shown.out
    assert "1 of 4 pictures were left out; the first: picture" in shown.err
    assert "broken.png" in shown.err
    alone = tmp_path / "alone"
    assert run("upscale", tmp_path / "in" / "one.png", "-o", alone, *FAST) == 0
    assert (alone / f"{made[0]}.png").read_bytes() == (tmp_path / "out" / f"{made[0]}.png").read_bytes(), "as if it had been enlarged alone"


def test_several_pictures_need_a_folder_and_a_folder_needs_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gradient().save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    assert run("upscale", tmp_path / "a.png", tmp_path / "a.png", "-o", tmp_path / "x.png", *FAST) == 2
    assert "is one file and 2 pictures are given" in capsys.readouterr().err
    assert run("upscale", tmp_path / "empty", "-o", tmp_path / "out", *FAST) == 2
    assert "holds no picture" in capsys.readouterr().err


def test_long_and_foreign_names_are_kept_as_far_as_they_fit(tmp_path: Path) -> None:
    output = Output(tmp_path)
    foreign = "картина_" * 30
    stem = output.free_stem(foreign)
    assert foreign.startswith(stem)
    assert len(stem.encode()) > 200
    save_picture(gradient(), tmp_path / f"{stem}.png")
    assert len(f"{output.free_stem(foreign)}_phase10of10.png".encode()) <= 255
    assert output.free_stem(foreign) != stem
