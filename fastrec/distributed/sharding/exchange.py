"""What goes over the network in one call: who has an answer to give, what is asked, and what is answered.

Three collectives of a process group of its own, whatever the number of tables. All ranks take part in each, and none waits longer than the
group's time limit: a peer that is gone, or does not answer, is a `PeerLostError` on every rank that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ...errors import InputError, PackageMissing, PeerLostError
from .channels import Asked, Channel, Held

__all__ = ["OUT_OF_STEP", "Exchange", "Group", "Traffic"]

OUT_OF_STEP = "an earlier call was ended within an exchange, so the ranks are out of step: start them again, and shard anew"
"""Why there is no other call."""

# Some builds of torch are without it.
_c10d: Any = import_module("torch.distributed.distributed_c10d") if dist.is_available() else None


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sent to others and got from them over `calls` calls of `samples` rows of its own.

    `asked` and `asked_by` are ids, sent and got, `answered_to` and `answered` rows and sums, sent and got; the rest are counts.
    """

    calls: int = 0
    samples: int = 0
    sent: int = 0
    received: int = 0
    asked: int = 0
    asked_by: int = 0
    answered_to: int = 0
    answered: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Traffic(*(one + another for one, another in pairs))


class Group:
    """The ranks of `parent` (None: all) with connections of their own, made by all of them at once.

    Not by `torch.distributed.new_group`: its groups have names that depend on how many groups each rank is in, and after one was closed
    the next finds what that left in the store. `timeout` in seconds may be changed; it bounds every exchange, and the meeting here.

    Raises `InputError` where no process group is there, `PeerLostError` where a rank does not come.
    """

    def __init__(self, parent: Any, timeout: float) -> None:
        if not dist.is_available():
            raise PackageMissing("this torch is built without torch.distributed: install the one of PyPI")
        if not dist.is_initialized():
            raise InputError(
                "there is no process group: call torch.distributed.init_process_group('gloo') on every rank first, as in a script "
                "that is run by torchrun"
            )
        me = dist.get_rank()
        members = dist.get_process_group_ranks(parent if parent is not None else dist.group.WORLD)
        if me not in members:
            raise InputError(f"this process, rank {me}, is none of the group's: {members}")
        self.rank, self.world = members.index(me), len(members)
        self.timeout, self.lost = timeout, ""
        name = f"fastrec/{'-'.join(map(str, members))}"
        try:
            store, over = _c10d._get_default_store(), f"{name}/meetings that are over"
            number = store.add(over, 0)
            place = _c10d.PrefixStore(f"{name}/meeting {number}", store)
            try:
                self._ranks = _c10d.ProcessGroupGloo(place, self.rank, self.world, timedelta(seconds=timeout))
            finally:
                # It is over for all as soon as one rank has met all others, or has given up: who comes then goes to the next.
                store.compare_set(over, str(number), str(number + 1))
        except RuntimeError as error:
            raise PeerLostError(
                f"not every one of {self.world} ranks came within {timeout:g} s: {_said(error)}. "
                "Call it again on all of them, all within that time"
            ) from error

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """The bytes (n,) for each rank; gives those of each, of which there are so many."""
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        sent = torch.cat(list(parts))
        if self.lost:
            raise PeerLostError(self.lost)
        # Whatever ends it before its end, the ranks are out of step from here on.
        self.lost = OUT_OF_STEP
        try:
            self._ranks.alltoall_base(
                received,
                sent,
                list(sizes),
                [len(part) for part in parts],
                timeout=timedelta(seconds=self.timeout),
            ).wait()
        except RuntimeError as error:
            self.lost = (
                f"rank {self.rank} of {self.world} lost a peer: it is gone, or did not answer within {self.timeout:g} s (all ranks take part "
                f"in every call, with as many calls): {_said(error)}. Start the ranks again, and shard anew"
            )
            raise PeerLostError(self.lost) from error
        self.lost = ""
        return list(received.split_with_sizes(list(sizes)))

    def numbers(self, mine: Tensor) -> Tensor:
        """A row (world, n) of int64 for each rank; gives that of each for this one."""
        size = mine.shape[1] * 8
        raw = self.all_to_all(list(mine.contiguous().view(torch.uint8)), [size] * self.world)
        return torch.cat(raw).view(torch.int64).view(mine.shape)

    def close(self) -> None:
        """Gives its connections back."""
        self.lost = "this sharded model was closed"
        self._ranks.shutdown()


class Exchange:
    """The calls of one sharded model over a group: `channels`, each with what this rank holds for it."""

    def __init__(self, group: Group, channels: Sequence[tuple[Channel, Held]]) -> None:
        self._group, self._channels = group, tuple(channels)
        self._counts = [channel.counts for channel, _ in channels]

    @property
    def header_bytes(self) -> int:
        """What goes to each other rank with every call."""
        return 8 * (1 + sum(self._counts))

    def begin(self, asked: Sequence[Asked] | None) -> tuple[Tensor, list[int]]:
        """Says how much is asked, or that nothing can be; gives what all ask for (world, counts), and the ranks that cannot."""
        mine = torch.zeros(self._group.world, 1 + sum(self._counts), dtype=torch.int64)
        if asked is not None:
            mine[:, 0] = 1
            for column, one in zip(self._columns(), asked, strict=True):
                mine[:, column] = one.counts
        theirs = self._group.numbers(mine)
        return theirs, (theirs[:, 0] == 0).nonzero().flatten().tolist()

    def finish(
        self, asked: Sequence[Asked], theirs: Tensor, samples: int
    ) -> tuple[list[list[Tensor]], Traffic]:
        """Asks and answers; gives the answers to each channel by rank, and what went over the network."""
        group, columns = self._group, self._columns()
        ranks = range(group.world)
        given = [[theirs[rank, column].tolist() for column in columns] for rank in ranks]
        # By rank and channel: the bytes of what is asked, and of what is answered.
        get = [self._sizes(given[rank]) for rank in ranks]
        give = [self._sizes([one.counts[rank].tolist() for one in asked]) for rank in ranks]
        questions = group.all_to_all(
            [_joined([one.bodies[rank] for one in asked]) for rank in ranks],
            [sum(size for size, _ in get[rank]) for rank in ranks],
        )
        parts = [
            _joined(
                [
                    channel.answer(held, counts, body)
                    for (channel, held), counts, body in zip(
                        self._channels,
                        given[rank],
                        questions[rank].split_with_sizes([size for size, _ in get[rank]]),
                        strict=True,
                    )
                ]
            )
            for rank in ranks
        ]
        answers = group.all_to_all(parts, [sum(size for _, size in give[rank]) for rank in ranks])
        split = [answers[rank].split_with_sizes([size for _, size in give[rank]]) for rank in ranks]
        found = [[split[rank][number] for rank in ranks] for number in range(len(self._channels))]
        return found, self._traffic(samples, give, get)

    def _columns(self) -> list[slice]:
        """The columns of each channel's counts in a header."""
        ends = torch.tensor([1, *self._counts]).cumsum(0).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    def _sizes(self, counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        return [channel.sizes(each) for (channel, _), each in zip(self._channels, counts, strict=True)]

    def _traffic(
        self,
        samples: int,
        give: Sequence[Sequence[tuple[int, int]]],
        get: Sequence[Sequence[tuple[int, int]]],
    ) -> Traffic:
        others = [rank for rank in range(self._group.world) if rank != self._group.rank]
        asked, answered = (sum(size[k] for rank in others for size in give[rank]) for k in (0, 1))
        asked_by, answered_to = (sum(size[k] for rank in others for size in get[rank]) for k in (0, 1))
        counts = len(others) * self.header_bytes
        return Traffic(
            1, samples, asked + answered_to + counts, asked_by + answered + counts, asked, asked_by, answered_to, answered,
        )  # fmt: skip


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.uint8)


def _said(error: Exception) -> str:
    """What torch says, on one line and not too long of it."""
    return " ".join(str(error).split())[:200]
