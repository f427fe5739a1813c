"""Picture files: every mode comes out as its viewer shows it, and what cannot be used is refused in one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from apt_ext.demo.pictures import check_folder, load_picture, save_picture, to_picture, to_tensor, write_whole


def gradient(width=40, height=24):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"])
def test_modes_and_formats(tmp_path, mode, suffix):
    path = tmp_path / f"picture{suffix}"
    try:
        gradient().convert(mode).save(path)
        with Image.open(path) as written:
            wanted = np.asarray(written.convert("RGB"), float)
    except (OSError, ValueError) as error:
        pytest.skip(f"Pillow cannot keep {mode} in {suffix} ({error})")
    picture = load_picture(path)
    assert picture.rgb.mode == "RGB"
    assert picture.rgb.size == (40, 24)
    assert picture.alpha is None
    assert np.abs(np.asarray(picture.rgb, float) - wanted).max() == 0


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    got = np.asarray(load_picture(tmp_path / "grey.png").rgb, float)[..., 0]
    assert np.abs(got - values / 257).max() < 1


def test_dark_sixteen_bit_grey_stays_dark_and_is_turned(tmp_path):
    values = np.zeros((32, 48), np.uint16)
    values[:, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "dark.png", exif=exif)
    shown = load_picture(tmp_path / "dark.png").rgb
    assert shown.size == (32, 48)
    assert np.asarray(shown).max() <= 1


def test_floating_point_pictures_and_nan(tmp_path):
    values = np.linspace(0, 1, 32 * 32).reshape(32, 32).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.abs(np.asarray(load_picture(tmp_path / "float.tif").rgb, float)[..., 0] - values * 255).max() < 1
    Image.fromarray(np.clip(values * 1.001, 0, None)).save(tmp_path / "over.tif")
    assert np.asarray(load_picture(tmp_path / "over.tif").rgb).max() == 255
    Image.fromarray(values * 255).save(tmp_path / "bytes.tif")
    assert np.abs(np.asarray(load_picture(tmp_path / "bytes.tif").rgb, float)[..., 0] - values * 255).max() < 1
    Image.fromarray(values * 70000).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match="values up to 70000, so its white is not known"):
        load_picture(tmp_path / "wide.tif")
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match="holds 1 values that are not numbers"):
        load_picture(tmp_path / "nan.tif")


def test_exif_rotation_is_applied(tmp_path):
    picture = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = load_picture(tmp_path / "turned.png").rgb
    assert shown.size == (24, 40)
    assert np.array_equal(np.asarray(shown), np.rot90(np.asarray(picture), -1))


def test_alpha_is_kept_apart_and_hidden_colours_do_not_bleed(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (10, 200, 30, 255)
    rgba[:, 16:] = (255, 0, 255, 0)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    picture = load_picture(tmp_path / "alpha.png")
    assert picture.alpha is not None
    assert np.array_equal(np.asarray(picture.alpha), rgba[..., 3])
    assert (np.asarray(picture.rgb) == (10, 200, 30)).all()
    opaque = rgba.copy()
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    assert load_picture(tmp_path / "opaque.png").alpha is None


def huge_png(width, height):
    """A PNG header of any size, without the pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT5\xaf\x06\x1e"


def test_refusals_name_the_file_and_the_reason(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    damaged = tmp_path / "damaged.png"
    buffer = io.BytesIO()
    gradient(300, 300).save(buffer, "PNG")
    damaged.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "huge.png").write_bytes(huge_png(30000, 30000))
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    for name, reason in {
        "missing.png": "does not exist",
        "text.png": "is not a picture",
        "damaged.png": "cannot be read",
        "huge.png": "is 30000 x 30000 pixels; use sides from 16 to 16384",
        "dot.png": "is 1 x 1 pixels",
        ".": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            load_picture(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_png_is_whole_or_absent_and_repeats_its_bytes(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        save_picture(gradient(), tmp_path / name, {"parameters": "APT scale: 4"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").info["parameters"] == "APT scale: 4"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "c.png", b"half")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_tensors_and_back():
    picture = gradient()
    assert np.array_equal(np.asarray(to_picture(to_tensor(picture)[0])), np.asarray(picture))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        check_folder(tmp_path / "file" / "inner")
