"""What the rows of a model call show is what they were cut from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_ext.core.borders import fill_around
from apt_ext.core.conditioning import ViewBatch
from apt_ext.core.dilated import dilated_grid
from apt_ext.core.types import Around, Size
from apt_ext.core.windows import Window
from apt_ext.webui.hosts.views import View, present_views, views_of
from tests.host.double.jobs import ON

FILLS = [fill_around("reflect", Around(rows, columns)) for rows in (False, True) for columns in (False, True)]


def places(size):
    """(1, 1, H, W): every latent pixel's own number."""
    return torch.arange(size[0] * size[1], dtype=torch.float32).reshape(1, 1, *size)


@given(st.tuples(st.integers(8, 30), st.integers(8, 30)), st.integers(-6, 20), st.integers(-6, 20), st.sampled_from(FILLS))
def test_a_local_view_cuts_as_the_latent_is_cut(size, top, left, fill):
    batch = ViewBatch(size, 1, windows=(Window(top, left, 8, 8),), fill=fill)
    (view,) = views_of(batch)
    assert torch.equal(view.cut(places(size)), batch.gather(places(size)))


@given(st.tuples(st.integers(8, 30), st.integers(8, 30)), st.integers(1, 3), st.integers(1, 3), st.sampled_from(FILLS))
def test_dilated_views_cut_as_the_latent_is_cut(size, down, across, fill):
    batch = ViewBatch(size, 1, grid=dilated_grid(size, (down, across), fill, multiple=4), part=(0, down * across), fill=fill)
    views, cut = views_of(batch), batch.gather(places(size))
    assert len(views) == len(cut)
    for view, own in zip(views, cut, strict=True):
        assert torch.equal(view.cut(places(size))[0], own)


def test_what_lies_over_the_picture_is_cut_at_its_own_resolution():
    view = View(range(4, 8), range(0, 4), Size(8, 8))
    mask = torch.zeros(16, 32)
    mask[8:, :16] = 1
    assert view.cut(mask).tolist() == torch.ones(4, 4).tolist()


def test_a_place_in_the_picture_is_one_in_the_view():
    view = View(range(8, 24), range(0, 32, 2), Size(32, 32))
    assert [view.within(True, edge) for edge in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert [view.within(False, edge) for edge in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.25, 0.5, 1.0]


@pytest.mark.usefixtures("settings_page")
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_a_hook_in_the_model_is_told_of_every_row(host, job_of_kind, kind):
    ask, seen = host.adapter("views").present_views, []

    def look(module, args):
        views, x = ask(), args[0]
        seen.append((bool(host.shared.state.textinfo), views))
        if views is not None:
            assert len(views) == len(x)
            assert {(len(view.rows), len(view.columns)) for view in views} == {tuple(x.shape[-2:])}

    handle = host.model.model.diffusion_model.register_forward_pre_hook(look)
    host.run(job_of_kind(kind, {**ON, "method": "demofusion"}))
    handle.remove()
    assert all((views is None) != in_phases for in_phases, views in seen)
    last = [views for _, views in seen if views is not None and views[0].size == Size(16, 16)]
    whole = set()
    for views in last:
        for view in views:
            if view.rows.step == 1:
                whole |= {(row, column) for row in view.rows for column in view.columns}
    assert whole == {(row, column) for row in range(16) for column in range(16)}
    assert {view.rows.step for views in last for view in views} == {1, 2}
    assert ask() is None
    assert present_views() is None
