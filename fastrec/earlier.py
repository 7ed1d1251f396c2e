"""What was made of an earlier checkpoint of a model, so that rows that have not changed since are not worked on again.

Every table that a rule makes of tables of the model says where its rows come from (`Origin`): stacked ones, folded ones, coded
ones. Rows of the new checkpoint that hold the same bits as in the earlier one, and go the same way, come out as they did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from .graph import ORIGINS, constant

__all__ = [
    "Earlier",
    "Origin",
    "Region",
    "digest_of",
    "earlier_of",
    "mark_originals",
    "origin_of",
    "origins_of",
    "set_origin",
    "set_origins",
    "side_by_side",
]

_ORIGINALS, _EARLIER = "originals", "earlier"


@dataclass(frozen=True)
class Region:
    """Part of a table: its rows from `row` on, and columns from `column` on, are those of the model's table `path`, from its first
    row on, after `how` (nothing: as they are; folded into weights of that digest).
    """

    row: int
    rows: int
    column: int
    columns: int
    path: str
    how: str = ""


@dataclass(frozen=True)
class Origin:
    """Where the rows of a table come from, and in which form they are held (nothing: as they are).

    Rows that no region names are the same whatever the model holds.
    """

    regions: tuple[Region, ...]
    form: str = ""


def mark_originals(gm: fx.GraphModule) -> None:
    """Notes which constants of a captured graph are the model's own."""
    held = {str(node.target): constant(gm, node) for node in gm.graph.nodes if node.op == "get_attr"}
    gm.meta[_ORIGINALS] = {name: _place(tensor) for name, tensor in held.items() if tensor is not None}


def origin_of(gm: fx.GraphModule, name: str, tensor: Tensor) -> Origin | None:
    """Where the rows of a constant come from; None where that is not known."""
    known: Mapping[str, Origin] = gm.meta.get(ORIGINS, {})
    if name in known:
        return known[name]
    if tensor.ndim != 2 or gm.meta.get(_ORIGINALS, {}).get(name) != _place(tensor):
        return None
    return Origin((Region(0, len(tensor), 0, tensor.shape[1], name),))


def set_origin(gm: fx.GraphModule, name: str, origin: Origin | None) -> None:
    """Notes where the rows of a constant come from; None where that is not known, or not any more."""
    rest = {other: held for other, held in gm.meta.get(ORIGINS, {}).items() if other != name}
    gm.meta[ORIGINS] = rest if origin is None else {**rest, name: origin}


def origins_of(gm: fx.GraphModule) -> Mapping[str, Origin]:
    """Where the rows of its made constants come from, by their names."""
    known: Mapping[str, Origin] = gm.meta.get(ORIGINS, {})
    return known


def set_origins(gm: fx.GraphModule, origins: Mapping[str, Origin]) -> None:
    """As `origins_of` gave them."""
    gm.meta[ORIGINS] = dict(origins)


def side_by_side(parts: Iterable[tuple[Origin | None, int, int]]) -> Origin | None:
    """The origin of a table in which others begin at these rows and columns; None where that of one is not known."""
    regions: list[Region] = []
    for origin, row, column in parts:
        if origin is None or origin.form:
            return None
        regions += [replace(p, row=p.row + row, column=p.column + column) for p in origin.regions]
    return Origin(tuple(regions))


def earlier_of(gm: fx.GraphModule) -> Earlier | None:
    """What was made of the checkpoint before, where this graph is that of an update."""
    found: Earlier | None = gm.meta.get(_EARLIER)
    return found if found is not None and found.open else None


def digest_of(*tensors: Tensor | None) -> str:
    """A digest of these numbers, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


class Earlier:
    """The tables of the checkpoint before and of the new one, by their place in the model, and what was made of the former.

    `coded` and `folded` count what became of each table: rows taken over, and all of them.
    """

    def __init__(
        self, before: Mapping[str, Tensor], now: Mapping[str, Tensor], made: Sequence[tuple[Origin, Tensor]]
    ) -> None:
        self._before, self._now = before, now
        self._made = [(origin, tensor) for origin, tensor in made if tensor.ndim == 2]
        self._same: dict[str, Tensor] = {}
        self.open = True
        self.coded: dict[Origin, tuple[int, int]] = {}
        self.folded: dict[Region, tuple[int, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Earlier:
        # It goes with graphs, whose copies share their tensors.
        return self

    def close(self) -> None:
        """Lets go of all tables."""
        self.open = False
        self._before, self._now, self._made, self._same = {}, {}, [], {}

    def attach(self, gm: fx.GraphModule) -> None:
        """Lets the rules that rewrite this graph, and what comes of it, know."""
        gm.meta[_EARLIER] = self

    def coded_rows(self, table: Tensor, origin: Origin | None, code: Callable[[Tensor], Tensor]) -> Tensor:
        """`code(table)`, which codes each row by itself, rows that were coded before taken over."""
        old, source = self._rows(origin, len(table)) if origin is not None else (None, None)
        if origin is None or old is None or source is None:
            coded = code(table)
            if origin is not None:
                self.coded[origin] = (0, len(table))
            return coded
        known = source >= 0
        self.coded[origin] = (int(known.sum()), len(table))
        made = old.new_empty(len(table), old.shape[1])
        torch.index_select(old, 0, source.clamp_min(0), out=made)
        left = (~known).nonzero().flatten()
        if len(left):
            made[left] = code(table[left])
        return made

    def folded_blocks(self, region: Region, block: int, into: Tensor) -> list[bool]:
        """Fills each block of rows whose source and weights have not changed, and says which are filled.

        Blocks are those that were worked out together: products of other numbers of rows may round otherwise.
        """
        rows, old = len(into), self._region(region)
        starts = range(0, rows, block)
        if old is None or old.dtype is not into.dtype:
            self.folded[region] = (0, rows)
            return [False for _ in starts]
        same = self.same(region.path)
        filled = []
        for start in starts:
            end = min(start + block, rows)
            alike = end == min(start + block, len(old)) and end <= len(same) and bool(same[start:end].all())
            if alike:
                into[start:end] = old[start:end]
            filled.append(alike)
        self.folded[region] = (
            sum(min(block, rows - start) for start, done in zip(starts, filled, strict=True) if done),
            rows,
        )
        return filled

    def same(self, path: str) -> Tensor:
        """Which of the rows that both checkpoints have hold the same bits."""
        if path not in self._same:
            before, now = self._before.get(path), self._now.get(path)
            alike = before is not None and now is not None and before.dtype is now.dtype
            if not alike or before is None or now is None or before.shape[1:] != now.shape[1:]:
                self._same[path] = torch.zeros(0, dtype=torch.bool)
            else:
                rows = min(len(before), len(now))
                self._same[path] = _equal_rows(before[:rows], now[:rows])
        return self._same[path]

    def _rows(self, origin: Origin, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """What was made in this form before, and the row of it for each of so many rows, -1 for those to be made."""
        wanted = _by_rows(origin.regions)
        for known, tensor in self._made:
            if known.form != origin.form:
                continue
            held = {key: (row, count) for (row, count), key in _by_rows(known.regions).items()}
            source = torch.full((rows,), -1, dtype=torch.int64)
            for (row, count), key in wanted.items():
                if key not in held:
                    continue
                first, there = held[key]
                if count != there and any(how for *_, how in key):
                    continue  # products of another number of rows may round otherwise
                common = min(count, there)
                alike = torch.ones(common, dtype=torch.bool)
                for path in {path for _, _, path, _ in key}:
                    same = self.same(path)[:common]
                    alike[: len(same)] &= same
                    alike[len(same) :] = False
                numbers = torch.arange(first, first + common)
                source[row : row + common] = torch.where(alike, numbers, -1)
            if bool((source >= 0).any()) and int(source.max()) < len(tensor):
                return tensor, source
        return None, None

    def _region(self, region: Region) -> Tensor | None:
        """What was made of this region before."""
        for known, tensor in self._made:
            for one in known.regions if not known.form else ():
                if replace(one, row=0, rows=0, column=0) == replace(region, row=0, rows=0, column=0):
                    return tensor[one.row : one.row + one.rows, one.column : one.column + one.columns]
        return None


def _by_rows(regions: Sequence[Region]) -> dict[tuple[int, int], tuple[tuple[int, int, str, str], ...]]:
    """The regions of each block of rows, by its first row and number of rows."""
    found: dict[tuple[int, int], list[tuple[int, int, str, str]]] = {}
    for region in regions:
        found.setdefault((region.row, region.rows), []).append(
            (region.column, region.columns, region.path, region.how)
        )
    return {place: tuple(sorted(parts)) for place, parts in found.items()}


def _equal_rows(one: Tensor, other: Tensor) -> Tensor:
    """Which rows of two tables hold the same bits: of floats that are no numbers too."""
    left, right = (tensor.detach().contiguous().view(torch.uint8) for tensor in (one, other))
    for wide in (torch.int64, torch.int32, torch.int16):
        if left.shape[1] % wide.itemsize == 0 and not (left.data_ptr() | right.data_ptr()) % wide.itemsize:
            left, right = left.view(wide), right.view(wide)
            break
    return (left == right).all(1)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype
