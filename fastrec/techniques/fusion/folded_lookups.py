"""A linear map of looked-up rows is a lookup of mapped rows (A2, A2d).

    W cat([E_1[i_1], ..., E_F[i_F], x]) + b   =   sum_f T_f[i_f] + (W_x x + b)        T_f = E_f W_f^T  (V_f, h)
    W E[ids] + b                              =   (E W^T + b)[ids]                    ids (N, T): keys of a history
    W mean_t E[i_t]                           =   mean_t (E W^T)[i_t]                 sums, bags, expands alike

One id per row each: the T_f lie below each other in one table, and their sum is one gather and one sum of it, which
torch does as one bag. A bias goes into the table where no linear map remains. Tables are computed in float64;
`padding_idx` has no effect when nothing is trained.

**Cost rule.** Of a linear map with n rows, folding F fields of width d saves n F d h multiply-adds and, at one row, the
reading of as many weights; it costs n F rows of h floats, dear in proportion to where the table lies: 0.13 ns per
float from a cache of 1 MiB, 0.45 from 16 MiB, 0.8 from beyond, while a multiply-add in a matrix product costs 0.025. h
is on both sides: d decides, against the size of the table. Fields are taken small ones first, as many as pay best;
what is saved must be one and a half times what it costs, at one row and at 64. Where some of the linear map stays, or
the looked-up rows have other readers, that includes 8 us of calls, else 3 us for the sum. Lookup, join and linear map
against the folded sum, as a bag from N=100 on: microseconds in one thread (torch 2.13 CPU, a machine shared with
others; F fields of V rows; the last column is the folded table):

|  F, V, d, h        |    N=1      |    N=100    |     N=500   |  MiB |
|--------------------|-------------|-------------|-------------|------|
|  1, 1k, 16, 64     |  9.0 / 8.0  |   13 / 11   |   27 / 17   | 0.2  |
|  4, 100, 16, 256   | 10.1 / 8.3  |   50 / 20   |  187 / 60   | 0.4  |
|  4, 1k, 64, 256    | 13.7 / 8.2  |  161 / 36   |  812 / 144  | 3.9  |
|  8, 100, 16, 400   | 13.2 / 8.8  |  126 / 42   |  632 / 186  | 1.2  |
|  8, 1k, 16, 400    | 13.2 / 8.9  |  147 / 116  |  761 / 707  | 12   |
|  8, 10k, 16, 400   | 13.7 / 9.6  |  182 / 204  |  873 / 1276 | 122  |
|  4, 10k, 64, 256   | 15.4 / 9.2  |  178 / 71   |  921 / 327  | 39   |
|  16, 1k, 64, 64    | 14.8 / 8.6  |  234 / 41   | 1153 / 196  | 3.9  |

Whole models of small fields without and with it, width and first layer 64 and 256; then what the rule refuses:

| model                                      | backend      |   N=1    |   N=100   |    N=500    |
|--------------------------------------------|--------------|----------|-----------|-------------|
| two towers, 6 and 4 fields of up to 3k     | eager        | 126 / 95 | 419 / 202 | 1151 / 417  |
|                                            | ONNX Runtime |  50 / 48 | 230 / 130 | 1025 / 456  |
| the same, 16 and 128                       | eager        |  54 / 49 | 115 / 99  |  300 / 210  |
|                                            | ONNX Runtime |  36 / 42 |  96 / 99  |  415 / 376  |
| DeepFM, 14 fields of 10 to 100k, 16 and    | eager        |  56 / 57 | 421 / 524 | 1797 / 6942 |
| 256, all folded                            | ONNX Runtime |  40 / 46 | 443 / 737 | 1935 / 9023 |

When it does not apply: beyond the memory limit; to weights that are not constant; to a graph that writes in place;
to weighted bags and bags of the largest; to the gates of `gru` and `lstm`, which are one operator with its own weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from ...earlier import Origin, Region, digest_of, earlier_of, origin_of, set_origin, side_by_side
from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .id_columns import pack_ids
from .linear_parts import LinearPart, PartReader
from .purity import writes

__all__ = ["FOLD_BYTES", "fold_lookups"]

aten = torch.ops.aten
FOLD_BYTES = 256 * 2**20
"""What folding may add to a model by default."""

_ROWS = 64
_MARGIN = 1.5
_CALLS, _SUM = 8000.0, 3000.0
_MULTIPLY_ADD, _WEIGHT, _ROW = 0.025, 0.05, 10.0
_FLOAT = ((2**20, 0.13), (2**24, 0.45), (math.inf, 0.8))
_BLOCK = 1 << 14


def fold_lookups(gm: fx.GraphModule, limit: int = FOLD_BYTES) -> list[Change]:
    """Folds tables into the linear maps that read them; edits `gm` in place.

    Adds at most `limit` bytes to a graph, however often it is called: the original tables stay with the original.
    """
    if writes(gm):
        return []
    linears = [node for node in gm.graph.nodes if is_call(node, aten.linear.default)]
    # Those of the request first, as they gain most.
    linears.sort(key=lambda node: any(isinstance(n, torch.SymInt) for n in value(node).shape))
    changes = []
    for node in linears:
        left = limit - int(gm.meta.get("folded_bytes", 0))
        change = _fold(gm, node, left)
        if change is not None:
            gm.meta["folded_bytes"] = gm.meta.get("folded_bytes", 0) + change.added_bytes
            changes.append(change)
    return changes


def _fold(gm: fx.GraphModule, node: fx.Node, left: int) -> Change | None:
    x, weight = node.args[0], constant(gm, node.args[1])
    if weight is None or weight.ndim != 2 or not isinstance(x, fx.Node) or not weight.is_floating_point():
        return None
    parts = PartReader(gm).parts(x)
    chosen = _choose(gm, node, parts, weight, left)
    if not chosen:
        return None
    bias: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    with gm.graph.inserting_before(node):
        made, added = _Folding(gm, node, parts, chosen, weight).emit(bias)
    if [str(n) for n in value(made).shape] != [str(n) for n in value(node).shape]:
        raise RuntimeError(f"{node.name} would become {tuple(value(made).shape)}")
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    tables = {str(parts[k].table.target) for k in chosen if parts[k].table is not None}  # type: ignore[union-attr]  # an argument of a node is of any type
    detail = f"{len(chosen)} of {len(parts)} parts looked up in {', '.join(sorted(tables))} times its weights"
    return Change("fold lookups", node.name, detail, added)


def _choose(
    gm: fx.GraphModule, node: fx.Node, parts: list[LinearPart], weight: Tensor, left: int
) -> list[int]:
    """The parts to fold: the smallest tables first, as many as gain most within the memory that is left."""
    row = len(weight) * weight.element_size()
    held = {k: table for k, part in enumerate(parts) if (table := constant(gm, part.table)) is not None}
    order = sorted((k for k, t in held.items() if t.dtype == weight.dtype), key=lambda k: len(held[k]))
    best, found, added, old = 0.0, 0, 0, 0
    for stop, k in enumerate(order, 1):
        added, old = added + len(held[k]) * row, old + held[k].nbytes
        if added > left:
            break
        taken = [parts[k] for k in order[:stop]]
        gone = all(_read_only_by(part.node, node) for part in taken)
        calls = _CALLS if not gone or stop < len(parts) else _SUM if stop > 1 else 0.0
        gains = [
            _gain(taken, len(weight), _count(node, n), added, old if gone else None) - calls
            for n in (1, _ROWS)
        ]
        if min(gains) > 0 and gains[-1] > best:
            best, found = gains[-1], stop
    return order[:found]


def _gain(taken: list[LinearPart], height: int, rows: int, new: int, old: int | None) -> float:
    """Nanoseconds that folding these parts gains; `new` and `old` bytes of tables, None where those are still read."""
    columns = sum(part.width for part in taken)
    saved = columns * height * (_WEIGHT + _MULTIPLY_ADD * rows)
    lookups = rows * sum(part.times for part in taken)
    more = lookups * (_ROW + height * _per_float(new))
    if old is not None:
        more -= lookups * _ROW + rows * sum(part.times * part.width for part in taken) * _per_float(old)
    return saved - more * (_MARGIN if more > 0 else 1.0)


def _per_float(table: int) -> float:
    return next(cost for bound, cost in _FLOAT if table <= bound)


def _count(node: fx.Node, rows: int) -> int:
    """Rows of the linear map where the batch has this many."""
    return math.prod(n if isinstance(n, int) else rows for n in value(node).shape[:-1])


def _read_only_by(node: fx.Node, reader: fx.Node) -> bool:
    """Whether all that is made of the node is made for the reader."""
    return all(user is reader or _read_only_by(user, reader) for user in node.users) and bool(node.users)


class _Folding:
    """Writes what stands for a linear map with some of its parts folded."""

    def __init__(
        self, gm: fx.GraphModule, node: fx.Node, parts: list[LinearPart], chosen: list[int], weight: Tensor
    ) -> None:
        self._gm, self._node = gm, node
        starts = [sum(part.width for part in parts[:k]) for k in range(len(parts))]
        pieces = [weight[:, start : start + part.width] for start, part in zip(starts, parts, strict=True)]
        folded = [(parts[k], pieces[k]) for k in sorted(chosen)]
        self._packed = [found for found in folded if found[0].column is not None]
        if len(self._packed) == 1 and self._packed[0][0].chain:
            self._packed = []  # the one lookup as it is, of the other table
        self._apart = [found for found in folded if not any(found[0] is part for part, _ in self._packed)]
        self._rest = [(parts[k], pieces[k]) for k in range(len(parts)) if k not in chosen]
        self._added = 0

    def emit(self, bias: Any) -> tuple[fx.Node, int]:
        """The sum, at the graph's insertion point, and the bytes of its constants."""
        terms: list[fx.Node] = []
        if self._rest:
            terms.append(self._linear(bias))
            bias = None
        # The bias goes into a table of which each row is taken once.
        held = constant(self._gm, bias)
        if held is not None and (self._packed or any(len(part.chain) == 1 for part, _ in self._apart)):
            bias = None
        else:
            held = None
        if self._packed:
            terms.append(self._sum(held))
            held = None
        for part, piece in self._apart:
            inside = held if len(part.chain) == 1 else None
            terms.append(self._again(part, *self._table(part, piece, inside)))
            held = held if inside is None else None
        if bias is not None:
            terms.append(bias)
        total = terms[0]
        for term in terms[1:]:
            total = emit(self._gm, aten.add.Tensor, (total, term))
        return total, self._added

    def _linear(self, bias: Any) -> fx.Node:
        """The linear map of the parts that stay."""
        gm, x = self._gm, self._node.args[0]
        assert isinstance(x, fx.Node)
        flat: list[fx.Node] = []
        for part, _ in self._rest:
            rows, ndim = value(part.node).shape[0], value(part.node).ndim
            sizes = [1 if isinstance(rows, int) and rows == 1 else -1, part.width]
            flat.append(
                part.node if ndim == value(x).ndim else emit(gm, aten.reshape.default, (part.node, sizes))
            )
        joined = flat[0] if len(flat) == 1 else emit(gm, aten.cat.default, (flat, value(x).ndim - 1))
        weight = torch.cat([piece for _, piece in self._rest], 1).contiguous()
        args = (joined, self._constant("weight", weight), *([] if bias is None else [bias]))
        return emit(gm, aten.linear.default, args)

    def _sum(self, bias: Tensor | None) -> fx.Node:
        """The sum of one row for each id, of one table."""
        gm = self._gm
        made = [self._table(part, piece, None if k else bias) for k, (part, piece) in enumerate(self._packed)]
        tables = [table for table, _ in made]
        starts = [sum(len(table) for table in tables[:k]) for k in range(len(tables))]
        columns = [part.column for part, _ in self._packed if part.column is not None]
        ids, _ = pack_ids(gm, columns, starts)
        origin = side_by_side((one, start, 0) for (_, one), start in zip(made, starts, strict=True))
        rows = emit(gm, aten.embedding.default, (self._constant("table", torch.cat(tables), origin), ids))
        return emit(gm, aten.sum.dim_IntList, (rows, [1]))

    def _again(self, part: LinearPart, table: Tensor, origin: Origin | None) -> fx.Node:
        """The calls from the lookup on, of another table."""
        gm, (lookup, *calls) = self._gm, part.chain
        made = emit(
            gm, lookup.target, (self._constant("table", table, origin), *lookup.args[1:]), lookup.kwargs
        )
        for call in calls:
            made = emit(gm, call.target, (made, *call.args[1:]))
        return made

    def _table(self, part: LinearPart, columns: Tensor, bias: Tensor | None) -> tuple[Tensor, Origin | None]:
        """E W^T + b, block by block, as float64 takes twice the memory, and where its rows come from."""
        table = constant(self._gm, part.table)
        assert table is not None
        with torch.no_grad():
            folded = torch.empty(len(table), len(columns), dtype=table.dtype, device=table.device)
            wide = columns.double().t()
            origin = self._origin(part, table, columns, bias)
            earlier = earlier_of(self._gm)
            starts = range(0, len(table), _BLOCK)
            known = [False for _ in starts]
            if earlier is not None and origin is not None:
                known = earlier.folded_blocks(origin.regions[0], _BLOCK, folded)
            for start in (start for start, done in zip(starts, known, strict=True) if not done):
                block = table[start : start + _BLOCK].double() @ wide
                folded[start : start + _BLOCK] = block if bias is None else block + bias.double()
        return folded, origin

    def _origin(self, part: LinearPart, table: Tensor, columns: Tensor, bias: Tensor | None) -> Origin | None:
        """Where the rows of a folded table come from, if they are folded rows of a table of the model's own."""
        source = origin_of(self._gm, str(part.table.target), table) if part.table is not None else None
        if source is None or source.form or len(source.regions) != 1 or source.regions[0].how:
            return None
        (region,) = source.regions
        whole = (region.row, region.column) == (0, 0) and (region.rows, region.columns) == tuple(table.shape)
        how = f"folded {digest_of(columns, bias)}"
        return Origin((Region(0, len(table), 0, len(columns), region.path, how),)) if whole else None

    def _constant(self, name: str, tensor: Tensor, origin: Origin | None = None) -> fx.Node:
        self._added += tensor.nbytes
        made = add_constant(self._gm, f"{self._node.name}_{name}", tensor)
        set_origin(self._gm, str(made.target), origin)
        return made
