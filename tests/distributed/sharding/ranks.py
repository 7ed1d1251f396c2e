"""Processes of a gloo group on this machine, which call what tests give them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

__all__ = ["Raised", "Ranks"]

LIMIT = 60.0
"""Seconds that a test waits for a rank, at most."""


class Raised(Exception):
    """What a rank raised: the name of its type, and its text."""

    def __init__(self, kind: str, text: str, trace: str) -> None:
        super().__init__(f"{kind}: {text}\n{trace}")
        self.kind, self.text = kind, text


class Ranks:
    """`world` processes; the one of rank r calls `function(state, *args)`, where `state` is a dict of its own."""

    def __init__(self, world: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(world)]
        self.world = world
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_work, args=(rank, world, str(folder / "store"), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process, (_, theirs) in zip(self.processes, pairs, strict=True):
            process.start()
            theirs.close()

    def begin(self, function: Callable[..., Any], *args: Any, only: tuple[int, ...] | None = None) -> None:
        """Has ranks call it."""
        for rank in range(self.world) if only is None else only:
            self.pipes[rank].send((function, args))

    def result(self, rank: int) -> Any:
        """What a rank gave. Raises `Raised` where it raised, and fails where it does not answer."""
        assert self.pipes[rank].poll(LIMIT), f"rank {rank} does not answer"
        kind, value = self.pipes[rank].recv()
        if kind == "raised":
            raise Raised(*value)
        return value

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What all ranks give."""
        self.begin(function, *args)
        return [self.result(rank) for rank in range(self.world)]

    def errors(self, function: Callable[..., Any], *args: Any) -> list[Raised]:
        """What all ranks raise."""
        self.begin(function, *args)
        return [self.error(rank) for rank in range(self.world)]

    def error(self, rank: int) -> Raised:
        """What a rank raised."""
        try:
            value = self.result(rank)
        except Raised as raised:
            return raised
        raise AssertionError(f"rank {rank} gave {value!r}")

    def close(self) -> None:
        """Ends them."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                process.kill()
            process.join(LIMIT)
            pipe.close()


def _work(rank: int, world: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT)
    )
    state: dict[str, Any] = {"rank": rank}
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", function(state, *args)))
        except Exception as error:
            pipe.send(("raised", (type(error).__name__, str(error), traceback.format_exc())))
