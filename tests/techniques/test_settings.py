"""Wrong settings are named: technique, setting, what it takes, what it got."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fastrec.errors import InputError
from fastrec.techniques import (
    ComposeTables,
    FactorTables,
    FitTables,
    ProductQuantizeTables,
    ProjectPCA,
    PruneFields,
    QuantizeLinears,
    QuantizeTables,
    RelateTables,
    ShareEmbeddings,
    TruncateHistory,
)

WRONG: list[tuple[Any, str, Any, str]] = [
    (ComposeTables, "ratio", 1, "a share above 0 to below 1"),
    (ComposeTables, "learned", 1, "True or False"),
    (ComposeTables, "distil", -1, "a whole number from 0"),
    (FactorTables, "share", 0, "a share above 0 to below 1"),
    (FitTables, "bytes", 1.5, "a whole number from 0"),
    (ProductQuantizeTables, "codes", 257, "a whole number from 2 to 256"),
    (ProductQuantizeTables, "columns", True, "a whole number from 1 to 65536"),
    (ProjectPCA, "rank", 0, "a whole number from 1"),
    (ProjectPCA, "energy", "most", "a share above 0 up to 1"),
    (ProjectPCA, "without", "linear", "a tuple of names"),
    (PruneFields, "fields", (), "a name at least, or None for all"),
    (QuantizeLinears, "only", ["linear"], "a tuple of names"),
    (QuantizeTables, "only", (), "a name at least, or None for all"),
    (QuantizeTables, "hot", 1, "a share from 0 to below 1"),
    (QuantizeTables, "least_bytes", None, "a whole number from 0"),
    (RelateTables, "worst", float("nan"), "a share from 0 to below 1"),
    (ShareEmbeddings, "keep", 0, "a share above 0 up to 1"),
    (TruncateHistory, "recent", 0, "a whole number from 1"),
]


@pytest.mark.parametrize(("technique", "setting", "value", "takes"), WRONG)
def test_what_does_not_fit_is_named(technique: Any, setting: str, value: Any, takes: str) -> None:
    said = f"{technique.__name__}({setting}=...) takes {takes}, got {value!r}"
    with pytest.raises(InputError, match=re.escape(said)):
        technique(**{setting: value})


def test_what_fits_is_taken() -> None:
    made = ShareEmbeddings(keep=1), QuantizeTables(hot=0), ProjectPCA(rank=None, energy=1, only=None)
    assert [technique.exact for technique in made] == [True, False, False]
