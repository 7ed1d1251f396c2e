"""Embedding tables with fewer bits an entry, each row with a range of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...errors import InputError, TechniqueError
from ...graph import add_constant, copy_graph, emit, evaluate, is_call, sweep, value
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..fusion.moves import allow_strides, reads_strides
from .forms import FORMS, Form
from .reads import Read, Table, find_tables

__all__ = ["QuantizeTables"]

aten = torch.ops.aten
_WORST = 0.25
_APART = 4.0
_ENTRIES = 1 << 18


@dataclass(frozen=True)
class QuantizeTables(Technique):
    """Hold embedding tables with 16, 8 or 4 bits an entry, and read them in place of the float32 ones.

        x (V, d) float32, 4 d bytes a row   ->   16: 2 d      8: d + 8      4: d / 2 + 4 (d even; one more if odd)

    16 is float16; with 8 and 4 bits each row has a scale and an offset (`row_codes`). A score depends on its own row
    alone, whatever else is in the batch. Where the columns of a table are of very different size (an embedding and its
    first-order weight, joined by fusion) each is divided by a power of two before, and what is looked up multiplied.

    Tables stay, each with its reason, that are read by more than lookups (tied weights), smaller than `least_bytes`, not
    float32, not finite, too large for the form, or of which a column would be off by more than a quarter of its size.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured. Cost: seconds; with 4
    bits 12 s for 40 million entries.

    Source: row-wise ranges as in Guan et al., "Post-Training 4-bit Quantization on Embedding Tables", 2019.

    Example:
        >>> QuantizeTables().exact, [step.bits for step in QuantizeTables.ladder()]
        (False, [16, 8, 4])
    """

    name: ClassVar[str] = "quantize_tables"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    bits: Literal[16, 8, 4] = 8
    least_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.bits not in FORMS:
            raise InputError(f"QuantizeTables(bits=...) takes 16, 8 or 4, got {self.bits!r:.80}")
        if not isinstance(self.least_bytes, int) or self.least_bytes < 0:
            raise InputError(f"QuantizeTables(least_bytes=...) takes 0 or more, got {self.least_bytes!r:.80}")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - more bits lose less on any program
        """More bits."""
        return tuple(replace(self, bits=bits) for bits in (8, 16) if bits > self.bits)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """16, 8 and 4 bits."""
        return cls(bits=16), cls(bits=8), cls(bits=4)

    def apply(self, program: Program) -> Applied:
        """The graph with these tables, sharing every other tensor; the program's own where none is worth it."""
        if not isinstance(program.model, fx.GraphModule):
            raise TechniqueError("rewrites captured graphs: capture the program first", technique=self.name)
        gm = copy_graph(program.model)
        changes: list[Change] = []
        skipped: list[Skip] = []
        for table in find_tables(gm):
            made = self._refusal(gm, table) or _coded(table.tensor, FORMS[self.bits])
            if isinstance(made, str):
                skipped.append(Skip("quantize tables", table.name, made))
                continue
            _replace(gm, table, made)
            was, now = table.tensor.nbytes, made.rows.nbytes
            detail = (
                f"{tuple(table.tensor.shape)} in {made.form.label}: {was / now:.2f} times smaller, "
                f"columns off by up to {made.error:.2%} of their size"
            )
            changes.append(Change("quantize tables", table.name, detail, now))
        if not changes:
            return Applied(program.model, (), tuple(skipped))
        sweep(gm)
        held = dict(gm.named_buffers()) | dict(gm.named_parameters())
        # The float tables that originals were moved into are gone.
        gm.meta["moved"] = {old: new for old, new in gm.meta.get("moved", {}).items() if new[0] in held}
        return Applied(gm, tuple(changes), tuple(skipped))

    def _refusal(self, gm: fx.GraphModule, table: Table) -> str:
        """Why the table stays, or nothing."""
        tensor, width = table.tensor, table.tensor.shape[1]
        if table.reason:
            return table.reason
        if tensor.dtype is not torch.float32:
            return f"it holds {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.nbytes < self.least_bytes:
            return f"its {tensor.nbytes} bytes are less than {self.least_bytes}"
        form = FORMS[self.bits]
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
    """A table (V, d) in another form, what its columns are to be multiplied by, and the largest error of a column."""

    form: Form
    rows: Tensor
    width: int
    columns: Tensor | None
    error: float


def _coded(table: Tensor, form: Form) -> _Coded | str:
    """The table in this form, or why it would not be itself."""
    columns = _columns(table) if form.ranged else None
    rows = form.code(table if columns is None else table / columns)
    made = _Coded(form, rows, table.shape[1], columns, _error(table, form, rows, columns))
    if not made.error <= _WORST:
        return f"in {form.label} a column would be off by {made.error:.0%} of its size"
    return made


def _parts(table: Tensor) -> list[slice]:
    """Some rows after another, few enough that what is worked out of them takes little memory."""
    step = max(1, _ENTRIES // table.shape[1])
    return [slice(start, start + step) for start in range(0, len(table), step)]


def _columns(table: Tensor) -> Tensor | None:
    """Powers of two that bring the columns to about one size; None where they are."""
    squares = torch.zeros(table.shape[1], dtype=torch.float64)
    for part in _parts(table):
        squares += table[part].double().square_().sum(0)
    sizes = (squares / len(table)).sqrt()
    held = sizes[sizes > 0]
    if not held.numel() or float(held.max()) < _APART * float(held.min()):
        return None
    powers = (sizes / held.median()).log2().round().clamp(-24, 24)
    return torch.where(sizes > 0, powers.exp2(), 1.0).float()


def _error(table: Tensor, form: Form, rows: Tensor, columns: Tensor | None) -> float:
    """The error of the column that is off most, relative to its size (root mean squares)."""
    off = torch.zeros(table.shape[1], dtype=torch.float64)
    sizes = torch.zeros_like(off)
    for part in _parts(table):
        right = table[part].double()
        found = form.read(rows, torch.arange(part.start, part.start + len(right)))[:, : table.shape[1]]
        if columns is not None:
            found = found * columns
        off += (found - right).square_().sum(0)
        sizes += right.square_().sum(0)
    return float((off / torch.where(sizes > 0, sizes, 1.0)).max().sqrt())


def _replace(gm: fx.GraphModule, table: Table, made: _Coded) -> None:
    """Every lookup of the table as one of its other form."""
    rows = add_constant(gm, f"{table.name}_{made.form.label}", made.rows)
    factors = None if made.columns is None else add_constant(gm, f"{table.name}_columns", made.columns)
    for read in table.reads:
        with gm.graph.inserting_before(read.node):
            found = _found(gm, made.form, rows, read)
        if read.bag:
            for user in list(read.node.users):
                if user.args[1] == 0:
                    user.replace_all_uses_with(found)
                gm.graph.erase_node(user)
        else:
            read.node.replace_all_uses_with(found)
        gm.graph.erase_node(read.node)
        _finish(gm, found, made.width, factors)


def _found(gm: fx.GraphModule, form: Form, rows: fx.Node, read: Read) -> fx.Node:
    ids = emit(gm, aten.reshape.default, (read.ids, [-1, read.bag])) if read.bag else read.ids
    found = emit(gm, form.lookup, (rows, ids))
    if value(found).dtype is not torch.float32:
        found = emit(gm, aten.to.dtype, (found, torch.float32))
    if read.bag:
        found = emit(gm, aten.mean.dim if read.mean else aten.sum.dim_IntList, (found, [1]))
    return found


def _finish(gm: fx.GraphModule, found: fx.Node, width: int, factors: fx.Node | None) -> None:
    """Cuts off the column that made an odd row even, and gives the columns their size: once rows are added up, if so."""
    end = found
    while (pooled := _pooled(end)) is not None:
        end = pooled
        end.meta["val"] = evaluate(gm, end)
    axis = value(end).ndim - 1
    made = [end]
    with gm.graph.inserting_before(end.next):
        if value(end).shape[axis] != width:
            made.append(emit(gm, aten.slice.Tensor, (end, axis, 0, width)))
            allow_strides(gm)
        if factors is not None:
            made.append(emit(gm, aten.mul.Tensor, (made[-1], factors)))
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
