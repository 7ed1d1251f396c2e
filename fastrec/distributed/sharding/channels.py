"""What ranks ask one another for, and send back: rows of a table, or sums of rows for each bag.

Everything travels as bytes, what all tables ask for together. A message's sizes follow from counts that are sent before it, so nothing
is copied into a form of its own: rows held as small integers or in float16 travel as they are, and are read where they arrive.

rows    asked: the ids of a batch, each once          answered: a row for each
sums    asked: the ids of each bag, and their number    answered: one vector for each bag that has some

Each is in order of ids and of bags, and vectors are added up in order of ranks: what a sample gets does not depend on the others.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import IdOutOfRangeError
from ...graph import value
from .plan import Placed
from .tables import LookedUpTable, Lookup, decoded

__all__ = ["Asked", "Channel", "Held", "Rows", "Sums", "channels_of", "hold"]

Values = Mapping[fx.Node, Any]
_SHORT = 1 << 31


@dataclass(frozen=True)
class Held:
    """What a rank has of a table: its piece of the rows, and all hot rows (H, ...)."""

    piece: Tensor
    hot: Tensor


@dataclass(frozen=True)
class Asked:
    """What one channel asks for in one call: the counts for each rank (world, counts), the bytes for each, and what is kept for the answer."""

    counts: Tensor
    bodies: Sequence[Tensor]
    kept: Mapping[str, Any] = field(default_factory=dict)


def hold(table: LookedUpTable, placed: Placed, rank: int, *, copied: bool) -> Held:
    """What a rank has of a table; views of it, unless they are to be copied so that the rest can go."""
    part, tensor = placed.part(rank), table.tensor.detach()
    piece = tensor[part.start : part.stop]
    return Held(
        piece.clone(memory_format=torch.contiguous_format) if copied else piece,
        tensor[torch.tensor(placed.hot, dtype=torch.int64)],
    )


def channels_of(tables: Sequence[tuple[LookedUpTable, Placed]], world: int) -> list[tuple[Channel, int]]:
    """The channels of these tables, each with the number of its table: in this order on every rank."""
    made: list[tuple[Channel, int]] = []
    for number, (table, placed) in enumerate(tables):
        template = torch.empty(0, *table.tensor.shape[1:], dtype=table.tensor.dtype)
        by_form = list(zip(table.lookups, placed.forms, strict=True))
        rows = [lookup for lookup, form in by_form if form == "rows"]
        if rows:
            made.append((Rows(placed, world, template, rows), number))
        made += [
            (Sums(placed, world, template, lookup), number) for lookup, form in by_form if form == "sums"
        ]
    return made


class Channel(abc.ABC):
    """One kind of question about one table, the same on every rank."""

    counts: int

    def __init__(self, placed: Placed, world: int, template: Tensor) -> None:
        """`template` (0, ...) is of the table's dtype and width."""
        self.placed, self.world, self.template = placed, world, template
        pieces = placed.pieces
        self.ranks = [piece.rank for piece in pieces]
        self.starts = torch.tensor([piece.start for piece in pieces])
        self.hot = torch.tensor(placed.hot, dtype=torch.int64)
        widest = max(piece.stop - piece.start for piece in pieces)
        self.id_dtype = torch.int32 if widest < _SHORT else torch.int64

    @property
    @abc.abstractmethod
    def results(self) -> list[fx.Node]:
        """The nodes whose values `finish` gives."""

    @property
    @abc.abstractmethod
    def operands(self) -> list[fx.Node]:
        """The nodes whose values `ask` takes."""

    @abc.abstractmethod
    def ask(self, values: Values) -> Asked:
        """The questions of one batch. Raises `IdOutOfRangeError` at an id that the table does not have."""

    @abc.abstractmethod
    def sizes(self, counts: Sequence[int]) -> tuple[int, int]:
        """Bytes of the question with these counts, and of its answer."""

    @abc.abstractmethod
    def answer(self, held: Held, counts: Sequence[int], body: Tensor) -> Tensor:
        """The bytes that answer a question."""

    @abc.abstractmethod
    def finish(
        self, asked: Asked, answers: Sequence[Tensor], held: Held, values: Values
    ) -> dict[fx.Node, Tensor]:
        """What lookups give, by the node that stands for it, from the answers of all ranks."""

    def nothing(self) -> Asked:
        """No question."""
        empty = torch.empty(0, dtype=torch.uint8)
        return Asked(torch.zeros(self.world, self.counts, dtype=torch.int64), [empty] * self.world)

    def _check(self, ids: Tensor) -> None:
        """Raises `IdOutOfRangeError` at an id that the table does not have: a wrong one would be another rank's row."""
        if not ids.numel():
            return
        low, high = (int(end) for end in torch.aminmax(ids))
        if low < 0 or high >= self.placed.rows:
            raise IdOutOfRangeError(
                f"{self.placed.name} is looked up at {low if low < 0 else high}, expected 0 <= id < {self.placed.rows:,}. "
                "Map unseen ids to a row of the table before the call."
            )

    def _hot(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these ids are hot (n,), and the places of those among the hot rows."""
        if not len(self.hot):
            return torch.zeros(len(ids), dtype=torch.bool), ids[:0]
        places = torch.searchsorted(self.hot, ids).clamp_(max=len(self.hot) - 1)
        hot = self.hot[places] == ids
        return hot, places[hot]

    def _owners(self, ids: Tensor) -> Tensor:
        """The number of the piece that each id lies in."""
        return torch.searchsorted(self.starts, ids, right=True) - 1


class Rows(Channel):
    """Rows of a table, for all lookups that take rows of it."""

    counts = 1

    def __init__(self, placed: Placed, world: int, template: Tensor, lookups: Sequence[Lookup]) -> None:
        super().__init__(placed, world, template)
        self.lookups = tuple(lookups)

    @property
    def results(self) -> list[fx.Node]:
        """What each lookup gives."""
        return [lookup.result for lookup in self.lookups]

    @property
    def operands(self) -> list[fx.Node]:
        """What each lookup takes."""
        return [node for lookup in self.lookups for node in lookup.operands]

    def ask(self, values: Values) -> Asked:
        """Each id once, whoever of the lookups needs it."""
        given = [lookup.ids(values) for lookup in self.lookups]
        # A row that bags leave out has to be told from the others.
        left_out = {lookup.padding(self.placed.rows) for lookup in self.lookups} - {None}
        flat = [ids.reshape(-1).long() for ids in given]
        ids = torch.cat([*flat, torch.tensor(sorted(left_out), dtype=torch.int64)])
        self._check(ids)
        ids, places = torch.unique(ids, return_inverse=True)
        hot, hot_places = self._hot(ids)
        cold = ids[~hot]
        # They are in order, and so are the pieces.
        cuts = [*torch.searchsorted(cold, self.starts).tolist(), len(cold)]
        counts = torch.zeros(self.world, 1, dtype=torch.int64)
        bodies = [torch.empty(0, dtype=torch.uint8)] * self.world
        for number, rank in enumerate(self.ranks):
            mine = cold[cuts[number] : cuts[number + 1]] - self.starts[number]
            counts[rank], bodies[rank] = len(mine), _raw(mine.to(self.id_dtype))
        kept = {"places": places, "hot": hot, "hot_places": hot_places, "ids": ids}
        return Asked(counts, bodies, kept)

    def sizes(self, counts: Sequence[int]) -> tuple[int, int]:
        """An id and a row each."""
        (ids,) = counts
        return ids * self.id_dtype.itemsize, ids * self.placed.row_bytes

    def answer(self, held: Held, counts: Sequence[int], body: Tensor) -> Tensor:  # noqa: ARG002 - all of the body are ids
        """The rows, as they are held."""
        return _raw(held.piece.index_select(0, _numbers(body, self.id_dtype)))

    def finish(
        self, asked: Asked, answers: Sequence[Tensor], held: Held, values: Values
    ) -> dict[fx.Node, Tensor]:
        """Every lookup, in a table of the rows that came."""
        hot, ids = asked.kept["hot"], asked.kept["ids"]
        # A table of no rows is none, for some operators.
        raw = torch.zeros(max(1, len(ids)), self.placed.row_bytes, dtype=torch.uint8)
        came = torch.cat([answers[rank] for rank in self.ranks]).view(-1, self.placed.row_bytes)
        if len(self.hot):
            raw[: len(ids)][~hot] = came
            mine = held.hot.index_select(0, asked.kept["hot_places"])
            raw[: len(ids)][hot] = _raw(mine).view(-1, self.placed.row_bytes)
        else:
            raw[: len(ids)] = came
        table = raw.view(-1).view(self.template.dtype).view(-1, *self.template.shape[1:])
        found: dict[fx.Node, Tensor] = {}
        start = 0
        for lookup in self.lookups:
            shape = lookup.ids(values).shape
            places = asked.kept["places"][start : start + shape.numel()].view(shape)
            start += shape.numel()
            padding = lookup.padding(self.placed.rows)
            place = None if padding is None else int(torch.searchsorted(ids, padding))
            found[lookup.result] = lookup.looked_up(table, places, values, place)
        return found


class Sums(Channel):
    """Sums of the rows of each bag, for one lookup."""

    counts = 2

    def __init__(self, placed: Placed, world: int, template: Tensor, lookup: Lookup) -> None:
        super().__init__(placed, world, template)
        assert lookup.sums is not None
        self.lookup, self.mean, self.result = lookup, lookup.sums.mean, lookup.sums.result
        self.width, self.dtype = int(value(self.result).shape[-1]), value(self.result).dtype

    @property
    def results(self) -> list[fx.Node]:
        """The sums."""
        return [self.result]

    @property
    def operands(self) -> list[fx.Node]:
        """What the lookup takes."""
        return self.lookup.operands

    def ask(self, values: Values) -> Asked:
        """The ids of each bag, with the rank that has them."""
        ids, bags, count = self.lookup.flat(values, self.placed.rows)
        self._check(ids)
        numbers = torch.bincount(bags, minlength=count)
        hot, hot_places = self._hot(ids)
        cold, cold_bags = ids[~hot], bags[~hot]
        owners = self._owners(cold)
        order = owners.argsort(stable=True)
        cold, cold_bags = cold[order] - self.starts[owners[order]], cold_bags[order]
        cuts = [0, *torch.bincount(owners, minlength=len(self.ranks)).cumsum(0).tolist()]
        counts = torch.zeros(self.world, 2, dtype=torch.int64)
        bodies = [torch.empty(0, dtype=torch.uint8)] * self.world
        into = {}
        for number, rank in enumerate(self.ranks):
            some = slice(cuts[number], cuts[number + 1])
            into[rank], each = torch.unique_consecutive(cold_bags[some], return_counts=True)
            counts[rank] = torch.tensor([len(each), len(cold[some])])
            bodies[rank] = torch.cat([_raw(each.to(torch.int32)), _raw(cold[some].to(self.id_dtype))])
        shape = self.lookup.ids(values).shape[:-1] if not self.lookup.bags else torch.Size([count])
        kept = {
            "into": into, "shape": shape, "count": count, "numbers": numbers, "hot_bags": bags[hot], "hot_places": hot_places,
        }  # fmt: skip
        return Asked(counts, bodies, kept)

    def sizes(self, counts: Sequence[int]) -> tuple[int, int]:
        """A number for each bag and each id, and a vector for each bag."""
        bags, ids = counts
        return 4 * bags + ids * self.id_dtype.itemsize, bags * self.width * self.dtype.itemsize

    def answer(self, held: Held, counts: Sequence[int], body: Tensor) -> Tensor:
        """The sums of this rank's rows."""
        bags, _ = counts
        each = _numbers(body[: 4 * bags], torch.int32)
        return _raw(self._added_up(held.piece, _numbers(body[4 * bags :], self.id_dtype), each))

    def finish(
        self,
        asked: Asked,
        answers: Sequence[Tensor],
        held: Held,
        values: Values,  # noqa: ARG002 - what sums take of them is kept
    ) -> dict[fx.Node, Tensor]:
        """The sums of all ranks, hot rows first, then by ranks."""
        kept = asked.kept
        total = torch.zeros(kept["count"], self.width, dtype=self.dtype)
        if len(kept["hot_places"]):
            into, each = torch.unique_consecutive(kept["hot_bags"], return_counts=True)
            total[into] = self._added_up(held.hot, kept["hot_places"], each)
        for rank in self.ranks:
            # A rank has one vector at most for each bag.
            total[kept["into"][rank]] += _numbers(answers[rank], self.dtype).view(-1, self.width)
        if self.mean:
            total /= kept["numbers"].clamp(min=1).to(self.dtype)[:, None]
        return {self.result: total.view(*kept["shape"], self.width)}

    def _added_up(self, table: Tensor, ids: Tensor, each: Tensor) -> Tensor:
        """The sums (bags, d) of the rows of these ids (n,), so many in each bag."""
        if not len(each):
            return torch.zeros(0, self.width, dtype=self.dtype)
        starts = (each.cumsum(0) - each).long()
        if table.dtype is not self.dtype:
            table, ids = decoded(self.lookup, table, ids), torch.arange(len(ids))
        return torch.embedding_bag(table, ids.long(), starts, False, 0, False, None, False)[0]


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor (n,)."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _numbers(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that these bytes are; copied, as they may lie anywhere."""
    return raw.clone().view(dtype)
