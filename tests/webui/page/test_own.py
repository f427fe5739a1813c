"""Settings that a picture brings along in its own infotext."""

import dataclasses

import pytest

from apt_ext.options import PRESETS

pytestmark = pytest.mark.usefixtures("settings_page")

ON = {"enabled": True, "own_settings": True}
WRITTEN = "a leaf\nSteps: 4, Sampler: euler, APT method: multidiffusion, APT phases: direct, APT overlap: 0.5, APT version: 9.9"


def of(picture, text=None):
    own = picture.copy()
    own.info = {} if text is None else {"parameters": text}
    return own


def made_with(host, p):
    host.run(p)
    return {name: value for name, value in p.extra_generation_params.items() if name.startswith("APT")}


def test_each_file_of_a_batch_is_enlarged_by_its_own_settings_and_the_others_by_the_page_s(host, picture):
    """As the batch tab does: one processing object, file after file."""
    p = host.picture_job(ON | {"overlap": 0.25})
    plain = made_with(host, host.picture_job({"enabled": True, "overlap": 0.25}, init_images=[picture]))
    found = []
    for text in (None, WRITTEN, "a stone\nSteps: 4, Sampler: euler"):
        p.init_images, p.sampler, p.init_latent = [of(picture, text)], None, None
        found.append(made_with(host, p))
    assert found[0] == found[2] == plain
    assert (found[1]["APT method"], found[1]["APT phases"], found[1]["APT overlap"]) == ("multidiffusion", "direct", 0.5)
    assert found[1]["APT matching"] == plain["APT matching"]


def test_nothing_is_taken_unasked_nor_in_a_hires_pass(host, picture):
    p = host.picture_job({"enabled": True}, init_images=[of(picture, WRITTEN)])
    assert made_with(host, p)["APT method"] == "demofusion"
    assert made_with(host, host.text_job(ON))["APT method"] == "demofusion"


def test_an_axis_of_the_plot_goes_before_the_picture(host, picture):
    p = host.picture_job(ON, init_images=[of(picture, WRITTEN)])
    p.apt_axis_preset = "Quality"
    assert made_with(host, p)["APT overlap"] == PRESETS["Quality"].options.overlap


def test_what_the_host_wrote_comes_back_as_the_same_job(host, picture):
    settings = {"method": "accdiffusion", "phases": "1.5,2", "gamma": -0.25, "border": "over", "word_threshold": 0.0, "colour_fix": 0.0}
    written = made_with(host, host.picture_job({"enabled": True} | settings, init_images=[picture]))
    text = "a leaf\nSteps: 4, " + ", ".join(f"{name}: {value}" for name, value in written.items() if "," not in str(value))
    again = made_with(host, host.picture_job(ON | {"phases": "1.5,2"}, init_images=[of(picture, text)]))
    assert again == written


def test_a_value_that_cannot_be_is_refused_in_a_sentence(host, picture):
    p = host.picture_job(ON, init_images=[of(picture, WRITTEN.replace("0.5", "7"))])
    with pytest.raises(host.adapter("errors").APTError, match=r"\(overlap\) 7\.0 is out of range"):
        host.run(p)
    assert not host.model.calls


def test_a_file_whose_text_cannot_be_read_has_none(host, picture, monkeypatch):
    def broken(image):
        raise ValueError("no EXIF")

    monkeypatch.setattr(host.images, "read_info_from_image", broken)
    p = host.picture_job(ON, init_images=[of(picture, WRITTEN)])
    assert made_with(host, p)["APT method"] == "demofusion"
    assert host.errors.reports == ["APT: a picture's infotext could not be read"]


def test_only_what_changes_the_picture_is_read(host, picture):
    assert set(host.own.own_values(of(picture, WRITTEN))) == {"method", "phases", "overlap", "regions"}
    assert dataclasses.asdict(host.request.Request())["own_settings"] is False
