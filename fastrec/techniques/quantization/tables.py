"""Embedding tables with fewer bits an entry, each row with a range of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...earlier import Earlier, Origin, digest_of, earlier_of, origin_of, set_origin
from ...errors import InputError
from ...graph import add_constant, emit, evaluate, is_call, value
from ...program import Program
from ..base import Change, Skip, Technique
from ..fusion.moves import allow_strides, reads_strides
from ..indirect import look_up
from ..reads import Table, added_up, ids_of, put_in_place
from ..settings import check_share
from ..tables import OnTables, Traffic
from .calibration import evenly
from .forms import FORMS, Form
from .hot_rows import Hot, hold_exact, hottest

__all__ = ["QuantizeTables"]

aten = torch.ops.aten
_WORST = 0.25
_APART = 4.0
_ENTRIES = 1 << 18
_SAMPLE = 1 << 15
_HOT = 0.05


@dataclass(frozen=True)
class QuantizeTables(OnTables):
    """Hold embedding tables with 16, 8 or 4 bits an entry, and read them in place of the float32 ones.

        x (V, d) float32, 4 d bytes a row   ->   16: 2 d      8: d + 8      4: d / 2 + 4 (d even; one more if odd)

    16 is float16; with 8 and 4 bits each row has a scale and an offset (`row_codes`). The `hot` share of a table's rows
    that calibration looks up most (the example, without any) stay float32 (`hot_rows`): 4 bytes more a row, 4 d more a
    hot one. A score depends on its own row alone, whatever else is in the batch. Where the columns of a table are of very different size (an embedding and its
    first-order weight, joined by fusion) each is divided by a power of two before, and what is looked up multiplied.

    Tables stay, each with its reason, that are read by more than lookups (tied weights), smaller than `least_bytes`, not
    float32, not finite, too large for the form, or of which a column would be off by more than a quarter of
    what its entries usually are.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured. Cost: seconds; with 4
    bits 12 s for 40 million entries.

    Source: row-wise ranges as in Guan et al., "Post-Training 4-bit Quantization on Embedding Tables", 2019.

    Example:
        >>> QuantizeTables().exact, [(step.bits, step.hot) for step in QuantizeTables.ladder()]
        (False, [(16, 0.0), (8, 0.0), (4, 0.05), (4, 0.0)])
    """

    name: ClassVar[str] = "quantize_tables"
    rule: ClassVar[str] = "quantize tables"
    saves: ClassVar[Literal["time", "bytes"]] = "time"

    bits: Literal[16, 8, 4] = 8
    hot: float = 0.0

    def __post_init__(self) -> None:
        if self.bits not in FORMS:
            raise InputError(f"QuantizeTables(bits=...) takes 16, 8 or 4, got {self.bits!r:.80}")
        super().__post_init__()
        check_share(self, "hot", zero=True)

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """More hot rows, where calibration says which are, and then more bits."""
        known = program.calibration and self.hot < _HOT and self.bits < 16
        hotter = [replace(self, hot=_HOT)] if known else []
        return (*hotter, *(replace(self, bits=bits) for bits in (8, 16) if bits > self.bits))

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """16, 8 and 4 bits, the last with hot rows and without."""
        return cls(bits=16), cls(bits=8), cls(bits=4, hot=_HOT), cls(bits=4)

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Each table in its new form, or the reason."""
        changes: list[Change] = []
        skipped: list[Skip] = []
        hottest_of = {table.name: hottest(traffic(table), self.hot) for table in tables} if self.hot else {}
        for table in tables:
            hot = hottest_of.get(table.name)
            origin = origin_of(gm, table.name, table.tensor) if hot is None else None
            made = _coded(table.tensor, FORMS[self.bits], hot, origin, earlier_of(gm))
            if isinstance(made, str):
                skipped.append(Skip(self.rule, table.name, made))
                continue
            _replace(gm, table, made)
            was, now = table.tensor.nbytes, made.nbytes
            detail = (
                f"{tuple(table.tensor.shape)} in {made.form.label}: {was / now:.2f} times smaller, "
                f"columns off by up to {made.error:.2%} of their size"
            )
            changes.append(Change(self.rule, table.name, f"{detail}; {hot}" if hot else detail, now))
        return changes, skipped

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:
        """Entries or columns that the form cannot hold."""
        tensor, width, form = table.tensor, table.tensor.shape[1], FORMS[self.bits]
        if form.bytes_of(width) >= 4 * width:
            return f"a row takes {4 * width} bytes, in {form.label} {form.bytes_of(width)}"
        if form.ranged and form.bytes_of(width) == form.bytes_of(width + 1) and reads_strides(gm):
            return "the graph reads strides"
        low, high = tensor.aminmax()
        if not max(-float(low), float(high)) <= form.largest:
            return f"it holds {float(low):.3g} to {float(high):.3g}"
        return ""


@dataclass(frozen=True)
class _Coded:
    """A table (V, d) in another form, its hot rows, what its columns are to be multiplied by, and how far one is off at most."""

    form: Form
    rows: Tensor
    width: int
    hot: Hot | None
    columns: Tensor | None
    error: float = 0.0
    origin: Origin | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, the exact ones among them."""
        return self.rows.nbytes + (self.hot.nbytes(len(self.rows), self.width) if self.hot else 0)


def _coded(
    table: Tensor, form: Form, hot: Hot | None, origin: Origin | None, earlier: Earlier | None
) -> _Coded | str:
    """The table in this form, or why it would not be itself; rows that were coded for an `earlier` checkpoint are taken over."""
    sizes = _sizes(table)
    columns = _columns(sizes) if form.ranged else None
    origin = _origin(origin, form, table, columns)

    def code(some: Tensor) -> Tensor:
        return form.code(some if columns is None else some / columns)

    rows = code(table) if earlier is None else earlier.coded_rows(table, origin, code)
    if hot:
        # In every form zeros are read as 0.
        rows.index_fill_(0, hot.rows, 0)
    made = _Coded(form, rows, table.shape[1], hot, columns, origin=origin)
    made = replace(made, error=_error(made, table, sizes))
    if not made.error <= _WORST:
        return f"in {form.label} a column would be off by {made.error:.0%} of its size"
    if made.nbytes >= table.nbytes:
        return f"it takes {table.nbytes} bytes, in {form.label} with {hot} {made.nbytes}"
    return made


def _origin(origin: Origin | None, form: Form, table: Tensor, columns: Tensor | None) -> Origin | None:
    """Where coded rows come from: rows of a table that come from there, in this form."""
    if origin is None or origin.form:
        return None
    return replace(origin, form=f"{form.label} of {table.shape[1]} columns, {digest_of(columns)}")


def _parts(table: Tensor) -> list[slice]:
    """Some rows after another, few enough that what is worked out of them takes little memory."""
    step = max(1, _ENTRIES // table.shape[1])
    return [slice(start, start + step) for start in range(0, len(table), step)]


def _sizes(table: Tensor) -> Tensor:
    """What an entry of each column (d,) usually is, by magnitude: the median of those that are not zero; 0 for none.

    Not the mean square, which one entry of a million can make of another kind than all others. Of long tables some rows
    are looked at, spread over them.
    """
    some = evenly(table, _SAMPLE).abs_()
    sizes = some.masked_fill_(some == 0, torch.nan).nanmedian(0).values
    return torch.where(sizes.isnan(), table.abs().amax(0), sizes).double()


def _columns(sizes: Tensor) -> Tensor | None:
    """Powers of two that bring the columns to about one size; None where they are."""
    held = sizes[sizes > 0]
    if not held.numel() or float(held.max()) < _APART * float(held.min()):
        return None
    powers = (sizes / held.median()).log2().round().clamp(-24, 24)
    return torch.where(sizes > 0, powers.exp2(), 1.0).float()


def _error(made: _Coded, table: Tensor, sizes: Tensor) -> float:
    """How far entries are off in the column that is off most, root mean square; hot rows are off by nothing.

    Relative to the entry or to what its column's usually are, whichever is larger.
    """
    exact = torch.zeros(len(table), 1, dtype=torch.bool)
    if made.hot:
        exact[made.hot.rows] = True
    off = torch.zeros(table.shape[1], dtype=torch.float64)
    least = torch.where(sizes > 0, sizes, 1.0)
    for part in _parts(table):
        right = table[part].double()
        found = made.form.read(made.rows, torch.arange(part.start, part.start + len(right)))[
            :, : table.shape[1]
        ]
        if made.columns is not None:
            found = found * made.columns
        relative = (found - right) / right.abs().maximum(least)
        off += relative.masked_fill_(exact[part], 0).square_().sum(0)
    return float((off / len(table)).max().sqrt())


def _replace(gm: fx.GraphModule, table: Table, made: _Coded) -> None:
    """Every lookup of the table as one of its other form."""
    rows = add_constant(gm, f"{table.name}_{made.form.label}", made.rows)
    set_origin(gm, str(rows.target), made.origin)
    factors = None if made.columns is None else add_constant(gm, f"{table.name}_columns", made.columns)
    held = hold_exact(gm, table, made.hot.rows) if made.hot else None
    for read in table.reads:
        with gm.graph.inserting_before(read.node):
            ids = ids_of(gm, read)
            exact = added_up(gm, read, look_up(gm, *held, ids)) if held else None
            found = emit(gm, made.form.lookup, (rows, ids))
            if value(found).dtype is not torch.float32:
                found = emit(gm, aten.to.dtype, (found, torch.float32))
            found = added_up(gm, read, found)
        put_in_place(gm, read, found)
        _finish(gm, found, exact, made.width, factors)


def _finish(
    gm: fx.GraphModule, found: fx.Node, exact: fx.Node | None, width: int, factors: fx.Node | None
) -> None:
    """Cuts off the column that made an odd row even, gives the columns their size and adds the exact rows: once rows are
    added up, if so.
    """
    end = found
    while (pooled := _pooled(end)) is not None:
        end = pooled
        end.meta["val"] = evaluate(gm, end)
        if exact is not None:
            with gm.graph.inserting_before(end):
                exact = emit(gm, end.target, (exact, *end.args[1:]))
    axis = value(end).ndim - 1
    made = [end]
    with gm.graph.inserting_before(end.next):
        if value(end).shape[axis] != width:
            made.append(emit(gm, aten.slice.Tensor, (end, axis, 0, width)))
            allow_strides(gm)
        if factors is not None:
            made.append(emit(gm, aten.mul.Tensor, (made[-1], factors)))
        if exact is not None:
            made.append(emit(gm, aten.add.Tensor, (made[-1], exact)))
    if len(made) > 1:
        end.replace_all_uses_with(made[-1], delete_user_cb=lambda user: user is not made[1])


def _pooled(node: fx.Node) -> fx.Node | None:
    """The sum or mean of looked-up rows, where nothing else reads them and the columns stay apart."""
    user = next(iter(node.users), None)
    if (
        user is None
        or len(node.users) > 1
        or user.kwargs
        or not is_call(user, aten.sum.dim_IntList, aten.mean.dim)
    ):
        return None
    dims, last = user.args[1], value(node).ndim - 1
    apart = isinstance(dims, (list, tuple)) and len(dims) > 0 and not {-1, last} & set(dims)
    return user if apart else None
