"""A worker that ends in the middle of a run, and what must be the same as if it had not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastrec.distributed.batches import BatchScorer
from fastrec.distributed.tables import column

from .conftest import rows, spoilt

BLOCK, BLOCKS = 64, 12
MARKED = 7 * BLOCK + 5
TYPES = {
    "row": pa.int64(),
    "ids": pa.list_(pa.int64()),
    "history": pa.list_(pa.int64()),
    "price": pa.float32(),
}


def blocks() -> list[pa.Table]:
    """Rows in blocks, some of them bad, each block a batch."""
    made = []
    for start in range(0, BLOCK * BLOCKS, BLOCK):
        table = rows(BLOCK, seed=start) | {"row": np.arange(start, start + BLOCK)}
        bad = spoilt(table) if start % 3 == 0 else table
        # A column of Arrow cannot hold a text as well.
        bad["history"] = [None if x is not None and "a" in list(x) else x for x in bad["history"]]
        made.append(pa.table({name: pa.array(list(x), TYPES[name]) for name, x in bad.items()}))
    return made


def end_once(row: Iterable[Any], flag: str) -> None:
    """Ends this process, at once and for good, as it first meets the marked row."""
    if MARKED in list(row) and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def check_nothing_lost_or_doubled(found: Any, scorer: BatchScorer) -> None:
    """Every row is there once, with the bits and the reason that a plain loop over the same batches gives it."""
    expected = pa.concat_tables(scorer.each(blocks()))
    order = np.argsort(np.asarray(column(found, "row")[0]))
    assert np.asarray(column(found, "row")[0])[order].tolist() == list(range(BLOCK * BLOCKS))
    for name in ("score_ctr", "score_value"):
        got, want = (_numbers(table, name) for table in (found, expected))
        np.testing.assert_array_equal(got[order], want)
        assert np.isnan(want).any() and np.isfinite(want).any()
    # Data frames have NaN for a price that is not there.
    said, want = (
        [text.partition(":")[0] if isinstance(text, str) else None for text in column(table, "reason")[0]]
        for table in (found, expected)
    )
    assert [said[row] for row in order] == want
    assert len(want) - want.count(None) == 4 * 6


def _numbers(table: Any, name: str) -> np.ndarray:
    """A column of scores: to some libraries NaN is nothing."""
    values, missing = column(table, name)
    made = np.stack(list(values))
    if missing is not None:
        made[missing] = np.nan
    return made
