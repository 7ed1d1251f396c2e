"""Tables in three forms (data frames of pandas, tables of Arrow, dicts of arrays): their columns as arrays, and columns added.

No library of tables is imported: one that a table comes from is there already.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["Array", "column", "cut", "form_of", "joined", "length", "names", "with_columns"]

Array = npt.NDArray[Any]
Form = Literal["pandas", "arrow", "arrays"]


def form_of(table: Any) -> Form:
    """Which form a table has. Raises `InputError` for what is none."""
    library = type(table).__module__.partition(".")[0]
    if library == "pandas" and hasattr(table, "iloc") and hasattr(table, "columns"):
        return "pandas"
    if library == "pyarrow" and hasattr(table, "column_names"):
        return "arrow"
    if isinstance(table, Mapping):
        return "arrays"
    raise InputError(
        f"rows are given as a data frame of pandas, a table or record batch of Arrow, or a dict of arrays, got {type(table).__name__}"
    )


def names(table: Any) -> list[str]:
    """The names of its columns."""
    return [str(name) for name in (table.column_names if form_of(table) == "arrow" else table)]


def length(table: Any) -> int:
    """How many rows it has. Raises `InputError` where columns of a dict disagree."""
    form = form_of(table)
    if form != "arrays":
        return int(table.num_rows if form == "arrow" else len(table))
    lengths = {str(name): len(values) for name, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"columns of one table have different numbers of rows: {lengths}")
    return next(iter(lengths.values()), 0)


def column(table: Any, name: str) -> tuple[Array, Array | None]:
    """A column as an array whose first dimension counts rows, and which rows have nothing there (None: not known of any).

    An array of objects holds one scalar, list or array for each row.
    """
    form = form_of(table)
    if form == "arrow":
        return _of_arrow(table.column(name))
    found = table[name]
    if form == "pandas":
        plain = getattr(found.dtype, "numpy_dtype", None)
        if plain is not None and plain.kind in "iufb":
            return found.array.to_numpy(dtype=plain, na_value=0), found.isna().to_numpy()
        return np.asarray(found.to_numpy()), None
    return (found.numpy(force=True) if isinstance(found, Tensor) else as_array(found)), None


def as_array(values: Any) -> Array:
    """Numbers as an array of their own, anything uneven as one of objects."""
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(values)
    except ValueError:
        return objects(values)


def objects(values: Sequence[Any]) -> Array:
    """One object for each row, whatever they are."""
    made = np.empty(len(values), object)
    for row, value in enumerate(values):
        made[row] = value
    return made


def cut(table: Any, start: int, stop: int) -> Any:
    """Rows `start` to below `stop`, in the same form."""
    form = form_of(table)
    if form == "pandas":
        return table.iloc[start:stop]
    if form == "arrow":
        return table.slice(start, stop - start)
    return {name: values[start:stop] for name, values in table.items()}


def joined(tables: Sequence[Any]) -> Any:
    """Tables of one form, one below the other."""
    if len(tables) == 1:
        return tables[0]
    form = form_of(tables[0])
    if form == "pandas":
        return sys.modules["pandas"].concat(tables)
    if form == "arrow":
        arrow = sys.modules["pyarrow"]
        whole = [arrow.Table.from_batches([t]) if isinstance(t, arrow.RecordBatch) else t for t in tables]
        return arrow.concat_tables(whole)
    return {name: _behind([one[name] for one in tables]) for name in tables[0]}


def _behind(parts: Sequence[Any]) -> Any:
    """Parts of one column, one behind the other, as what they are."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [value for part in parts for value in part]


def with_columns(
    table: Any, keep: Sequence[str] | None, added: Mapping[str, Array], texts: Mapping[str, Sequence[str | None]]
) -> Any:  # fmt: skip
    """The columns `keep` of a table (None: all), and behind them numbers (n, ...) and texts, in the same form.

    Of more than two dimensions each row is one flat list, but in a dict of arrays. Raises `InputError` where a name is taken, not there or
    that of two columns.
    """
    form, given = form_of(table), names(table)
    kept = given if keep is None else list(keep)
    if taken := sorted({*added, *texts} & set(kept)):
        raise InputError(
            f"the table has a column {taken[0]!r} already: name the outputs otherwise (output=...)"
        )
    if gone := sorted(set(kept) - set(given)):
        raise InputError(f"the table has no column {gone[0]!r} to keep: it has {', '.join(given)}")
    if twice := sorted(name for name, count in Counter(given).items() if count > 1 and name in kept):
        raise InputError(
            f"the table has {given.count(twice[0])} columns {twice[0]!r}: rename them, or name those to keep (keep=...)"
        )
    if form == "arrays":
        return (
            {name: table[name] for name in kept}
            | dict(added)
            | {k: np.array(v, object) for k, v in texts.items()}
        )
    flat = {name: x if x.ndim < 2 else x.reshape(len(x), -1) for name, x in added.items()}
    if form == "pandas":
        made = {name: x if x.ndim < 2 else list(x) for name, x in flat.items()}
        series = sys.modules["pandas"].Series
        # As objects: otherwise None would become NaN.
        said = {
            name: series(np.array(text, object), table.index, dtype=object) for name, text in texts.items()
        }
        return table[kept].assign(**made, **said)
    arrow = sys.modules["pyarrow"]
    parts = {name: table.column(name) for name in kept}
    for name, x in flat.items():
        parts[name] = _to_arrow(arrow, x)
    for name, text in texts.items():
        parts[name] = arrow.array(text, arrow.string())
    kind = arrow.RecordBatch if isinstance(table, arrow.RecordBatch) else arrow.Table
    return kind.from_arrays(list(parts.values()), names=list(parts))


def _to_arrow(arrow: Any, x: Array) -> Any:
    if x.ndim < 2:
        return arrow.array(x)
    ends = np.arange(len(x) + 1, dtype=np.int32) * x.shape[1]
    return arrow.ListArray.from_arrays(ends, arrow.array(x.reshape(-1)))


def _of_arrow(values: Any) -> tuple[Array, Array | None]:
    arrow = sys.modules["pyarrow"]
    if isinstance(values, arrow.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, arrow.ChunkedArray):  # of no chunks, in some versions
        values = arrow.array([], values.type)
    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    if isinstance(values, arrow.ExtensionArray):
        # Tensors, by Arrow's own type or by Ray's.
        dense = getattr(values, "to_numpy_ndarray", None)
        return (dense() if dense and missing is None else values.to_numpy(zero_copy_only=False)), missing
    kind = values.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind):
        filled = values if missing is None else values.fill_null(False if kind == arrow.bool_() else 0)
        return filled.to_numpy(zero_copy_only=False), missing
    if missing is None and (found := _even_lists(arrow, values)) is not None:
        return found, None
    return objects(values.to_numpy(zero_copy_only=False)), missing


def _even_lists(arrow: Any, values: Any) -> Array | None:
    """Lists of equal lengths, with no null in them, as one array (n, k, ...)."""
    kind, n = values.type, len(values)
    if not any(
        getattr(arrow.types, f"is_{name}")(kind) for name in ("list", "large_list", "fixed_size_list")
    ):
        return None
    inner = values.flatten()
    sizes = arrow.compute.list_value_length(values).to_numpy(zero_copy_only=False) if n else np.empty(0)
    if not n or inner.null_count or (sizes != sizes[0]).any():
        return None
    nested = arrow.types.is_nested(inner.type)
    found = _even_lists(arrow, inner) if nested else inner.to_numpy(zero_copy_only=False)
    if found is None or found.dtype == object:
        return None
    return found.reshape(n, int(sizes[0]), *found.shape[1:])
