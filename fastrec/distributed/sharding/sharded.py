"""A model whose tables lie on several ranks: called on each of them like the model itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import InputError, PeerError
from .channels import Held, channels_of, hold
from .exchange import Exchange, Group, Traffic
from .graphs import front_of, rest_of
from .plan import Placed, ShardPlan
from .sources import Entrance, Shardable, Source, source_of
from .tables import Found, find_tables

__all__ = ["Sharded", "shard"]


class Sharded:
    """A model over the ranks of a group, made by `shard`; called on each rank with its own batch, as the model is called.

    Every call is one of all ranks: each has to make as many, with any number of rows, none among them; a rank that has no batch at hand
    calls `take_part()`. Calls of one process come one after the other. Answers come without gradients, computed by torch's own kernels.

    Raises what the compressed model raises for a batch that does not fit; the other ranks then raise `PeerError`, and the next call goes on.
    Raises `PeerLostError` where another rank is gone, or does not answer within the time limit: from then on every call does. `traffic` is what went over the network
    so far, `last` in the call before, `plan` what was planned.
    """

    def __init__(
        self,
        plan: ShardPlan,
        entrance: Entrance,
        source: Source,
        exchange: Exchange,
        group: Group,
        parts: _Parts,
    ) -> None:
        self.plan, self.rank = plan, group.rank
        self.traffic = self.last = Traffic()
        self._entrance, self._samples = entrance, source.samples
        self._exchange, self._group, self._parts = exchange, group, parts
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer for this rank's batch."""
        with self._lock, torch.no_grad():
            try:
                flat = self._entrance(args, kwargs)
                values = self._parts.values(flat)
                asked = [channel.ask(values) for channel in self._parts.channels]
                samples = self._samples(flat)
            except Exception:
                # The others wait for this rank's part.
                self._begin(None)
                raise
            with torch.inference_mode():
                answers = self._asked(asked, samples)
            looked_up: dict[fx.Node, Tensor] = {}
            for channel, held, one, answer in zip(
                self._parts.channels, self._parts.held, asked, answers, strict=True
            ):
                looked_up |= channel.finish(one, answer, held, values)
            return self._entrance.result(self._parts.outputs(flat, looked_up))

    def take_part(self) -> None:
        """One call without a batch: the other ranks get what this one holds. Raises as a call does."""
        with self._lock, torch.inference_mode():
            self._asked([channel.nothing() for channel in self._parts.channels], 0)

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How this is called, `(args, kwargs)`, with a batch in the form of the example."""
        return self._entrance.call_of(batch)

    @property
    def resident_bytes(self) -> int:
        """Bytes of constants that this rank holds, those that lie in a mapped file among them."""
        return self.plan.bytes_on(self.rank)

    def close(self) -> None:
        """Leaves the group: there are no calls after this."""
        self._group.close()

    def _begin(self, asked: Any) -> tuple[Tensor, list[int]]:
        with torch.inference_mode():
            return self._exchange.begin(asked)

    def _asked(self, asked: Any, samples: int) -> list[list[Tensor]]:
        """The answers, by channel and rank. Raises `PeerError` where a rank has no part in it."""
        theirs, refusing = self._begin(asked)
        if refusing:
            ranks = ", ".join(map(str, refusing))
            raise PeerError(
                f"no rank has an answer to this call, since rank {ranks} could not take part: the reason is raised there",
                ranks=tuple(refusing),
            )
        answers, self.last = self._exchange.finish(asked, theirs, samples)
        self.traffic += self.last
        return answers


class _Parts:
    """What a rank computes by itself: which rows are looked up, what is asked and answered, and the rest."""

    def __init__(self, source: Source, plan: ShardPlan, rank: int) -> None:
        tables = [(table, placed) for table, placed in _matched(source.graph, plan) if placed.way != "whole"]
        kept: list[Held] = [hold(table, placed, rank, copied=not source.mapped) for table, placed in tables]
        found = channels_of(tables, plan.world)
        self.channels = [channel for channel, _ in found]
        self.held = [kept[number] for _, number in found]
        self._wanted = list(dict.fromkeys(node for channel in self.channels for node in channel.operands))
        self._given = [node for channel in self.channels for node in channel.results]
        self._front = front_of(source.graph, self._wanted)
        self._rest = rest_of(source.graph, self._given)

    def values(self, flat: Sequence[Tensor]) -> Mapping[fx.Node, Any]:
        """What lookups take, of one batch."""
        return dict(zip(self._wanted, self._front(*flat), strict=True))

    def outputs(self, flat: Sequence[Tensor], looked_up: Mapping[fx.Node, Tensor]) -> tuple[Tensor, ...]:
        """The graph's outputs, of what was looked up."""
        found: tuple[Tensor, ...] = self._rest(*flat, *(looked_up[node] for node in self._given))
        return found


def shard(
    what: Shardable,
    plan: ShardPlan,
    *,
    group: Any = None,
    timeout: float = 30.0,
    setup_timeout: float = 1800.0,
    types: Sequence[type] = (),
    verify: bool = True,
) -> Sharded:
    """This rank's part of a model whose tables are shared out as planned; called on every rank of `group` (None: all) at once.

    `what` is as for `plan_shards`. A compressed model's tables are copied as far as this rank holds them, so it may go; of a folder the
    rank maps the file, and reads from the disk only what is looked up in its own rows: with `verify=False`, since the digests of all files take a
    pass over all bytes (check the folder once, by `fastrec.artifact.check`). No call waits for another rank longer than `timeout` seconds, this one `setup_timeout`.

    Raises `InputError` where the plan is for another model or number of ranks, or no process group is there; `PeerLostError` where
    a rank does not come, and `PeerError` where one could not do its part. Cost: a copy of this rank's tables.
    """
    meeting = Group(group, setup_timeout)
    failure: Exception | None = None
    try:
        made = _made(what, plan, meeting, types, verify)
    except Exception as error:  # noqa: BLE001 - raised below, once the others know
        failure = error
    mine = torch.zeros(meeting.world, 5, dtype=torch.int64)
    if failure is None:
        mine[:, 0] = 1
        mine[:, 1:] = torch.frombuffer(bytearray(plan.digest), dtype=torch.int64)
    theirs = meeting.numbers(mine)
    meeting.close()
    if failure is not None:
        raise failure
    refusing = (theirs[:, 0] == 0).nonzero().flatten().tolist()
    if refusing:
        raise PeerError(
            f"the model is not sharded, since rank {', '.join(map(str, refusing))} could not do its part: the reason is raised there",
            ranks=tuple(refusing),
        )
    if not bool((theirs == theirs[0]).all()):
        raise InputError(
            "the ranks have different plans: make one, and give it to all (ShardPlan.to_json, from_json)"
        )
    entrance, source, parts = made
    calls = Group(group, timeout)
    exchange = Exchange(calls, list(zip(parts.channels, parts.held, strict=True)))
    return Sharded(plan, entrance, source, exchange, calls, parts)


def _made(
    what: Shardable, plan: ShardPlan, group: Group, types: Sequence[type], verify: bool
) -> tuple[Entrance, Source, _Parts]:
    if plan.world != group.world:
        raise InputError(
            f"the plan is for {plan.world} ranks, the group has {group.world}: plan_shards(..., world={group.world})"
        )
    source = source_of(what, types=types, verify=verify)
    return Entrance(source.form), source, _Parts(source, plan, group.rank)


def _matched(gm: fx.GraphModule, plan: ShardPlan) -> list[tuple[Found, Placed]]:
    """The tables of the graph with their places. Raises `InputError` where the plan is for others."""
    only = {placed.name for placed in plan.sharded}
    found = {table.name: table for table in find_tables(gm, only=only)}
    made = []
    for placed in plan.tables:
        table = found.get(placed.name)
        fit = table is not None and (table.rows, table.row_bytes) == (placed.rows, placed.row_bytes)
        if fit and placed.way != "whole":
            assert table is not None
            covered = [0, *(piece.stop for piece in placed.pieces)]
            fit = (
                not table.reason
                and len(placed.forms) == len(table.lookups)
                and all(
                    form == "rows" or lookup.sums
                    for form, lookup in zip(placed.forms, table.lookups, strict=True)
                )
                and [piece.start for piece in placed.pieces] == covered[:-1]
                and covered[-1] == table.rows
                and len({piece.rank for piece in placed.pieces} & set(range(plan.world)))
                == len(placed.pieces)
            )
        if not fit or table is None:
            raise InputError(
                f"the plan is for another model: of {placed.name!r:.80} it has {placed.rows:,} rows of {placed.row_bytes} bytes on "
                f"{len(placed.pieces)} ranks, and the graph {'no such table' if table is None else f'{table.rows:,} of {table.row_bytes}'}"
            )
        made.append((table, placed))
    return made
