"""The benchmark of several processes, and the page that quotes it."""

from pathlib import Path

import pytest

from apt_ext.core.ranks.ranks import ALONE
from bench.speed.ranks import TIMED, counted, plan_of, timed

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def test_the_pages_counts_are_those_of_the_plan():
    for title, made in counted().items():
        assert f"**{title}**\n\n{made}" in PAGE


def test_a_timed_job_evaluates_its_plan():
    found = timed(ALONE, 0.001, scale=2)
    assert found["by_rank"] == [plan_of(TIMED, 2).evaluations]
    assert found["seconds"] > 0.001 * found["by_rank"][0]


@pytest.mark.parametrize("words", ["python -m bench.speed.ranks", "torchrun", "--share pictures", "--window-batch"])
def test_the_page_names_its_commands(words):
    assert words in PAGE
