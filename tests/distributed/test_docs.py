"""docs/scoring.md: what it shows without an engine is run here, and what it shows with one beside that engine's tests."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests import pages

from .killing import blocks, check_nothing_lost_or_doubled


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `ranker` is where the texts look for it."""
    monkeypatch.chdir(folder.parent)


def test_a_table_in_one_process(here: None) -> None:
    names = pages.run("docs/scoring.md", "scorer.score", frame=pa.concat_tables(blocks()).to_pandas())
    check_nothing_lost_or_doubled(names["found"].table, names["scorer"])
    assert names["found"].bad == {"ids": 4, "history": 12, "price": 8}


@pytest.mark.cluster
def test_workers_of_one_host(here: None, importable: None) -> None:
    names = pages.run("docs/scoring.md", "ProcessPoolExecutor", tables=blocks())
    check_nothing_lost_or_doubled(pa.concat_tables(names["scored"]), names["scorer"])
