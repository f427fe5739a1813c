"""The double of Forge for the tests of this folder."""

import pytest

from tests.host.forge import become_forge
from tests.host.forge.backend import FREE


@pytest.fixture
def memory():
    FREE.rows, FREE.asked = 1_000_000, []


@pytest.fixture
def forge(host, tmp_path, monkeypatch):
    """The double, as Forge from now on when called; `package` says which of its kin."""
    return lambda package="backend": become_forge(host, tmp_path, monkeypatch, package)


@pytest.fixture
def on_both(host, forge, job_of_kind):
    """Job -> its pictures on 1.10.1, and its pictures on Forge."""

    def run(kind, *args, package="backend", **given):
        def once():
            host.model.calls.clear()
            p = job_of_kind(kind, *args, **given)
            made = host.run(p)
            assert not p.scripts.reports
            return made, sum(shape[0] for shape in host.model.calls), p

        first = once()
        forge(package)
        return first, once()

    return run
