"""A model whose tables lie on several ranks: called on each of them like the model itself."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, PeerError, PeerLostError
from .exchange import OUT_OF_STEP, Exchange, Group, Traffic
from .local import LocalPart
from .plan import ShardPlan
from .sources import Entrance, Shardable, Source, source_of

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
        parts: LocalPart,
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
                asked = self._parts.asked(values)
                samples = self._samples(flat)
            except Exception:
                # The others wait for this rank's part.
                self._begin(None)
                raise
            with torch.inference_mode():
                answers = self._asked(asked, samples)
            return self._entrance.result(self._parts.outputs(flat, values, asked, answers))

    def take_part(self) -> None:
        """One call without a batch: the other ranks get what this one holds. Raises as a call does."""
        with self._lock, torch.inference_mode():
            self._asked(self._parts.nothing(), 0)

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
        try:
            answers, self.last = self._exchange.finish(asked, theirs, samples)
        except BaseException:
            # The others wait for what this rank does not send.
            self._group.lost = self._group.lost or OUT_OF_STEP
            raise
        self.traffic += self.last
        return answers


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
    ranks = Group(group, setup_timeout)
    failure: Exception | None = None
    try:
        made = _made(what, plan, ranks, types, verify)
        digest = hashlib.sha256(plan.digest + made[2].digest()).digest()
    except Exception as error:  # noqa: BLE001 - raised below, once the others know
        failure = error
    mine = torch.zeros(ranks.world, 5, dtype=torch.int64)
    if failure is None:
        mine[:, 0] = 1
        mine[:, 1:] = torch.frombuffer(bytearray(digest), dtype=torch.int64)
    try:
        theirs = ranks.numbers(mine)
    except PeerLostError:
        ranks.close()
        if failure is not None:
            raise failure from None
        raise
    ranks.timeout = timeout
    agreed = bool((theirs == theirs[0]).all()) and bool(theirs[0, 0])
    if not agreed:
        ranks.close()
    if failure is not None:
        raise failure
    refusing = (theirs[:, 0] == 0).nonzero().flatten().tolist()
    if refusing:
        raise PeerError(
            f"the model is not sharded, since rank {', '.join(map(str, refusing))} could not do its part: the reason is raised there",
            ranks=tuple(refusing),
        )
    if not agreed:
        raise InputError(
            "the ranks have different plans or models: make one plan, and give it to all (ShardPlan.to_json, from_json), with the same model"
        )
    entrance, source, parts = made
    exchange = Exchange(ranks, list(zip(parts.channels, parts.held, strict=True)))
    return Sharded(plan, entrance, source, exchange, ranks, parts)


def _made(
    what: Shardable, plan: ShardPlan, group: Group, types: Sequence[type], verify: bool
) -> tuple[Entrance, Source, LocalPart]:
    if plan.world != group.world:
        raise InputError(
            f"the plan is for {plan.world} ranks, the group has {group.world}: plan_shards(..., world={group.world})"
        )
    source = source_of(what, types=types, verify=verify)
    return Entrance(source.form), source, LocalPart(source.graph, plan, group.rank, copied=not source.mapped)
