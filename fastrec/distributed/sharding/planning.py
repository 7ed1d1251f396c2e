"""How tables are shared out: what real batches look up, hot rows, places, and the form that is the smallest.

Every choice is made from what calibration batches ask for, by the code that asks for it when serving: what is expected is what would have
travelled, had these been the batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from ...errors import InputError
from ...graph import constant
from ...techniques.fusion.id_columns import identity
from ...wording import amount
from .channels import Channel, Values, channels_of
from .graphs import front_of
from .plan import Form, Piece, Placed, ShardPlan
from .sources import Entrance, Shardable, Source, source_of
from .tables import LookedUpTable, find_tables

__all__ = ["plan_shards"]

_MOST_LOADED = 1.25

Placing = Literal["best", "table", "rows"]


def plan_shards(
    what: Shardable,
    world: int,
    *,
    traffic: Iterable[Any] | None = None,
    limit_bytes: int | None = None,
    hot: float = 0.01,
    least_bytes: int = 1 << 20,
    place: Placing = "best",
    form: Literal["best", "rows"] = "best",
    types: Sequence[type] = (),
    verify: bool = True,
) -> ShardPlan:
    """How the tables of a model are shared out over `world` ranks, each with `limit_bytes` for constants (None: any).

    `what` is a compressed model, a captured program or the folder of an artifact, for which `types` and `verify` are as `fastrec.load` takes them. `traffic`
    gives batches as the model takes them, of the size of those that are to be served; without any, the model's example is all that is known.

    Tables of less than `least_bytes`, and those that are read by more than lookups, are whole on every rank. Of each other the `hot` share of
    its rows that traffic reads most (twice at the least) is on every rank. Then, the heaviest first, each is put on the rank with the least load
    that has room for it, load being bytes / all bytes + traffic / all traffic; one that no rank has room for, or that would be more than 1.25 times a
    rank's fair load, is cut into rows, each piece with the same load. `place` says "table" or "rows" for all of them in place of that. For sums
    of rows what comes back is the smaller of both forms, as measured; with `form="rows"` rows, with which answers are the same
    bits as those of one process.

    Raises `InputError` for settings out of range, for batches that the model does not take, and where the ranks have too little room:
    how much it takes is said. Cost: that of the lookups' ids.
    """
    _check(world, limit_bytes, hot, least_bytes, place, form)
    source = source_of(what, types=types, verify=verify)
    seen = _Seen.of(source, find_tables(source.graph, least_bytes), traffic)
    left = [_whole(table) for table in seen.tables if table.reason]
    dense = _other_bytes(source.graph, seen.tables)
    apart = {table: _hottest(seen, table, hot) for table in seen.tables if not table.reason}
    every = dense + sum(placed.rows * placed.row_bytes for placed in left)
    every += sum(len(placed.hot) * placed.row_bytes for placed in apart.values())
    places = _Places(world, apart, seen)
    where = places.placed(place, None if limit_bytes is None else limit_bytes - every)
    if where is None:
        assert limit_bytes is not None
        hot_rows = any(placed.hot for placed in apart.values())
        raise _too_little(limit_bytes, world, every, places.needed(place), place, hot_rows)
    formed = {table: _formed(seen, table, placed, world, form) for table, placed in where.items()}
    by_name = {placed.name: placed for placed in (*left, *formed.values())}
    tables = tuple(by_name[table.name] for table in seen.tables)
    channels = channels_of(list(formed.items()), world)
    per_call = 8 * (1 + sum(channel.counts for channel, _ in channels))
    return ShardPlan(world, tables, dense, seen.samples, len(seen.values), per_call)


@dataclass(frozen=True)
class _Seen:
    """What traffic looks up: the values that lookups take, for each batch, and how many samples there were."""

    tables: Sequence[LookedUpTable]
    values: Sequence[Values]
    samples: int

    @classmethod
    def of(cls, source: Source, tables: Sequence[LookedUpTable], traffic: Iterable[Any] | None) -> _Seen:
        """The batches, run as far as ids go."""
        entrance = Entrance(source.form)
        if traffic is None:
            batches = [list(source.form.program.batch)]
        else:
            batches = [entrance(*entrance.call_of(batch)) for batch in traffic]
        if not batches or not batches[0]:
            raise InputError("traffic has no batches: the plan is made from what they look up. Give some")
        wanted = list(
            dict.fromkeys(
                node
                for table in tables
                if not table.reason
                for lookup in table.lookups
                for node in lookup.operands
            )
        )
        front = front_of(source.graph, wanted)
        with torch.no_grad():
            values = [dict(zip(wanted, front(*flat), strict=True)) for flat in batches]
        return cls(tables, values, sum(source.samples(flat) for flat in batches))

    def ids(self, table: LookedUpTable) -> Tensor:
        """All ids (n,) that reach a table."""
        every = [lookup.ids(values).reshape(-1) for values in self.values for lookup in table.lookups]
        return torch.cat([ids.long() for ids in every])

    def travels(self, channel: Channel) -> tuple[float, float]:
        """Bytes that a rank sends to ask for a sample, and gets as its answer, on average over ranks; what stays on a rank is left out."""
        asked = answered = 0.0
        for values in self.values:
            sizes = [channel.sizes(counts) for counts in channel.ask(values).counts.tolist()]
            asked += sum(one for one, _ in sizes)
            answered += sum(two for _, two in sizes)
        others = (channel.world - 1) / channel.world / max(1, self.samples)
        return asked * others, answered * others


def _whole(table: LookedUpTable) -> Placed:
    return Placed(table.name, "whole", table.rows, table.row_bytes, reason=table.reason)


def _hottest(seen: _Seen, table: LookedUpTable, share: float) -> Placed:
    """A table with its hot rows, not placed yet."""
    ids, counts = torch.unique(seen.ids(table), return_counts=True)
    order = counts.argsort(descending=True, stable=True)[: int(share * table.rows)]
    order = order[counts[order] > 1]
    reads = int(counts.sum())
    taken = int(counts[order].sum()) / max(1, reads)
    hot = tuple(ids[order].sort().values.tolist())
    per_sample = reads / max(1, seen.samples)
    return Placed(
        table.name, "table", table.rows, table.row_bytes, (), hot, reads=per_sample, hot_reads=taken
    )


class _Places:
    """Where each table goes. With `room` bytes on each rank for them (None: any) there may be none for all."""

    def __init__(self, world: int, tables: Mapping[LookedUpTable, Placed], seen: _Seen) -> None:
        self._world, self._tables, self._seen = world, tables, seen
        self.bytes = sum(table.nbytes for table in tables)
        self._traffic = sum(map(_traffic, tables.values())) or 1.0
        self._even: dict[LookedUpTable, list[int]] = {}
        self._room: int | None = None
        self._held: list[int] = []
        self._load: list[float] = []

    def placed(self, place: Placing, room: int | None) -> dict[LookedUpTable, Placed] | None:
        """All tables, in their order; None where there is too little room."""
        self._room, self._held, self._load = room, [0] * self._world, [0.0] * self._world
        if room is not None and room * self._world < self.bytes:
            return None
        loads = {
            table: table.nbytes / (self.bytes or 1) + _traffic(placed) / self._traffic
            for table, placed in self._tables.items()
        }
        fair = _MOST_LOADED * sum(loads.values()) / self._world
        found: dict[LookedUpTable, Placed] = {}
        for table in sorted(self._tables, key=lambda table: -loads[table]):
            rank = self._rank_for(table)
            whole = place == "table" or (place == "best" and loads[table] <= fair)
            pieces: tuple[Piece, ...] | None = None
            if whole and rank is not None:
                pieces = (Piece(0, table.rows, rank),)
            elif place != "table":
                pieces = self._cut(table)
            if pieces is None:
                return None
            way: Literal["table", "rows"] = "table" if len(pieces) == 1 else "rows"
            found[table] = replace(self._tables[table], way=way, pieces=pieces)
            for piece in pieces:
                part = (piece.stop - piece.start) / table.rows
                self._held[piece.rank] += (piece.stop - piece.start) * table.row_bytes
                self._load[piece.rank] += part * loads[table]
        return {table: found[table] for table in self._tables}

    def needed(self, place: Placing) -> int:
        """Bytes on each rank with which there is room, within a thousandth of the least there are."""
        low, high = self.bytes // self._world - 1, self.bytes
        while high - low > max(1, low // 1000):
            middle = (low + high) // 2
            low, high = (middle, high) if self.placed(place, middle) is None else (low, middle)
        return high

    def _rank_for(self, table: LookedUpTable) -> int | None:
        """The rank with the least load among those with room for the table."""
        fit = [rank for rank in range(self._world) if self._left(rank) >= table.nbytes]
        return min(fit, key=lambda rank: self._load[rank], default=None)

    def _left(self, rank: int) -> float:
        return float("inf") if self._room is None else self._room - self._held[rank]

    def _cut(self, table: LookedUpTable) -> tuple[Piece, ...] | None:
        """A piece for each rank of about the same load; where a rank has no room for its, by what room there is, None if too little."""
        if table not in self._even:
            self._even[table] = self._even_ends(table)
        ends = self._even[table]
        sizes = [(end - start) * table.row_bytes for start, end in zip([0, *ends], ends, strict=False)]
        if any(size > self._left(rank) for rank, size in enumerate(sizes)):
            rooms = [max(0, int(self._left(rank) // table.row_bytes)) for rank in range(self._world)]
            if sum(rooms) < table.rows:
                return None
            ends = [int(table.rows * sum(rooms[: rank + 1]) / sum(rooms)) for rank in range(self._world)]
        starts = [0, *ends[:-1]]
        return tuple(
            Piece(start, end, rank)
            for rank, (start, end) in enumerate(zip(starts, ends, strict=True))
            if end > start
        )

    def _even_ends(self, table: LookedUpTable) -> list[int]:
        """Where pieces end that have the same sum of rows / all rows and reads / all reads that are not of hot rows."""
        ids = self._seen.ids(table)
        hot = torch.tensor(self._tables[table].hot, dtype=torch.int64)
        cold = ids[~torch.isin(ids, hot)].sort().values
        low, high = torch.zeros(self._world), torch.full((self._world,), float(table.rows))
        low, high = low.long(), high.long()
        wanted = torch.arange(1, self._world + 1).double() / self._world
        # The share of load below a row rises with it: its place is found by halves.
        while bool((low < high).any()):
            middle = (low + high) // 2
            reads = (
                torch.searchsorted(cold, middle).double() / len(cold) if len(cold) else middle / table.rows
            )
            enough = (middle / table.rows + reads) / 2 >= wanted
            high, low = torch.where(enough, middle, high), torch.where(enough, low, middle + 1)
        return [*high[:-1].tolist(), table.rows]


def _too_little(
    limit: int, world: int, every: int, tables: int, place: Placing, hot_rows: bool
) -> InputError:
    """The error where ranks with a limit have too little room: what is on every rank takes `every` bytes, tables so many on each."""
    cures = [f"give limit_bytes={every + tables}"]
    if every < limit:
        cures.append("take more ranks")
    if hot_rows:
        cures.append("have fewer hot rows (hot=...)")
    if place == "table":
        cures.append("let tables be cut into rows (place='best')")
    return InputError(
        f"limit_bytes={limit} ({amount(limit)}) is too little for {world} ranks: what is on every rank takes {amount(every)}, and the tables "
        f"{amount(tables)} on each besides, {amount(every + tables)} together. Cure: {', or '.join(cures)}"
    )


def _traffic(placed: Placed) -> float:
    """Bytes of rows that a sample reads and that are not on every rank."""
    return placed.reads * (1 - placed.hot_reads) * placed.row_bytes


def _formed(
    seen: _Seen, table: LookedUpTable, placed: Placed, world: int, form: Literal["best", "rows"]
) -> Placed:
    """With the form of each lookup, and what travels for it."""
    forms: list[Form] = ["rows"] * len(table.lookups)
    best = _travels(seen, table, placed, world, forms)
    for number, lookup in enumerate(table.lookups):
        if lookup.sums is None or form == "rows":
            continue
        # Together, as rows are asked for once for all lookups that take rows.
        other = [*forms[:number], "sums", *forms[number + 1 :]]
        found = _travels(seen, table, placed, world, other)
        if sum(found) < sum(best):
            forms, best = other, found
    return replace(placed, forms=tuple(forms), asked=best[0], answered=best[1])


def _travels(
    seen: _Seen, table: LookedUpTable, placed: Placed, world: int, forms: Sequence[Form]
) -> tuple[float, float]:
    """What is asked and answered for a table with these forms, a sample."""
    channels = channels_of([(table, replace(placed, forms=tuple(forms)))], world)
    found = [seen.travels(channel) for channel, _ in channels]
    return sum(asked for asked, _ in found), sum(answered for _, answered in found)


def _other_bytes(gm: fx.GraphModule, tables: Sequence[LookedUpTable]) -> int:
    """Bytes of constants that are none of these tables."""
    known = {identity(table.tensor) for table in tables}
    held = {
        identity(tensor): tensor.nbytes
        for node in gm.graph.nodes
        if (tensor := constant(gm, node)) is not None
    }
    return sum(size for key, size in held.items() if key not in known)


def _check(world: int, limit_bytes: int | None, hot: float, least_bytes: int, place: str, form: str) -> None:
    if type(world) is not int or world < 1:
        raise InputError(f"plan_shards(world=...) takes a number of ranks, 1 at least, got {world!r:.80}")
    if limit_bytes is not None and (type(limit_bytes) is not int or limit_bytes < 1):
        raise InputError(f"limit_bytes takes a number of bytes or None, got {limit_bytes!r:.80}")
    if isinstance(hot, bool) or not isinstance(hot, (int, float)) or not 0 <= hot <= 1:
        raise InputError(f"hot takes a share of rows, 0 to 1, got {hot!r:.80}")
    if type(least_bytes) is not int or least_bytes < 0:
        raise InputError(f"least_bytes takes a number of bytes, got {least_bytes!r:.80}")
    if place not in ("best", "table", "rows"):
        raise InputError(f"place takes 'best', 'table' or 'rows', got {place!r:.80}")
    if form not in ("best", "rows"):
        raise InputError(f"form takes 'best' or 'rows', got {form!r:.80}")
