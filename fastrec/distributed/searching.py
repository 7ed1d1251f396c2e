"""Trials of a search by Ray actors, each in a process that is bound to cores which no other one has."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..memo import Memo
from ..packages import package
from ..recipe import Recipe
from ..search import Task, Worker, Workers
from ..search.trials import Trials
from ..tried import Tried

__all__ = ["ray_workers"]


def ray_workers(count: int, *, cores: Sequence[Collection[int]] | None = None) -> Workers:
    """Up to `count` workers for `compress(..., workers=...)`, on this machine, by the Ray that this process is connected to.

    Each is an actor with as many torch threads as this process has by then, bound to as many cores, none of which it shares with another
    one; where that takes more cores than there are, there are fewer workers, and the report says so. `cores` are those that may be
    used, each as the numbers of its processors; None for all that this process may run on, processors of one core taken together.

    Raises `PackageMissing` without Ray, `InputError` where this process is connected to none, for cores that overlap or are not to be
    had, and on systems that bind no process to cores. Cost: the model, its calibration and the labelled rows are moved once, by way of
    Ray's object store, and held by each worker; each compiles what is exact itself.

    Example: `ray.init(); compress(model, batch, evaluate=..., budget=..., workers=ray_workers(4))`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"ray_workers takes a number of workers, 1 or more, got {count!r:.80}")
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(
            "ray_workers binds processes to cores, which this system does not: leave workers= out"
        )
    _connected()
    return _RayWorkers(count, _own_cores() if cores is None else _read_cores(cores))


@dataclass(frozen=True)
class _RayWorkers:
    """So many actors at most, on these cores."""

    count: int
    cores: tuple[frozenset[int], ...]

    @contextlib.contextmanager
    def open(self, task: Task, notes: list[str], seconds: float) -> Iterator[Sequence[Worker]]:
        """Actors that hold the task and have compiled its start, ended when this is left."""
        ray, threads, limit = _connected(), torch.get_num_threads(), time.monotonic() + seconds
        here = ray.get_runtime_context().get_node_id()
        (node,) = (one for one in ray.nodes() if one["NodeID"] == here)
        processors = int(node["Resources"].get("CPU", 0))
        shares = _shares(self.cores, min(self.count, processors // threads), threads)
        if len(shares) < self.count:
            notes.append(
                f"{len(shares)} of the {self.count} workers that were asked for could be had: each takes as many cores of its own as there "
                f"are threads, {threads} of {len(self.cores)}, and as many of Ray's {processors} processors"
            )
        held = _moved(ray, task, notes) if shares else None
        bound = {} if held is None else {_actor(ray, threads): cores for cores in shares}
        try:
            calls = {actor.bind.remote(sorted(cores), threads): actor for actor, cores in bound.items()}
            # Where Ray has no processors left for a process, it never starts.
            there = _over(ray, calls, limit, notes, "started")
            ready = _over(ray, {actor.begin.remote(held): actor for actor in there}, limit, notes, "ready")
            # Whoever is late would compile on cores that others may be timed on.
            _end(ray, [actor for actor in bound if actor not in ready], notes)
            notes.append(_told([bound[actor] for actor in ready]))
            yield [_worker(actor) for actor in ready]
        finally:
            _end(ray, bound, notes)


class _Trier:
    """Makes trials in a process of its own, on cores of its own."""

    def __init__(self) -> None:
        self._trials: Trials | None = None

    def bind(self, cores: Sequence[int], threads: int) -> None:
        """Runs on these cores from now on, with all its threads: those of Ray as those that are started later."""
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # over since they were listed
                os.sched_setaffinity(int(thread), cores)
        torch.set_num_threads(threads)

    def begin(self, task: Task) -> None:
        """Compiles what all others are compared with."""
        self._trials = task.trials(Memo())

    def trial(self, recipe: Recipe, best: Recipe) -> Tried:
        """What becomes of a recipe beside the best so far."""
        assert self._trials is not None
        return self._trials(recipe, best)


def _connected() -> Any:
    """Ray, connected. What it starts, where it listens and what it reports are its user's to say."""
    ray = package("ray", "ray", "distributed.searching")
    if not ray.is_initialized():
        raise InputError("ray_workers: this process is connected to no Ray: call ray.init() first")
    return ray


def _actor(ray: Any, threads: int) -> Any:
    """An actor on this machine: what is fastest here is what serves here."""
    placed = package("ray.util.scheduling_strategies", "ray", "distributed.searching")
    here = placed.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Trier).options(num_cpus=threads, max_restarts=0, scheduling_strategy=here).remote()


def _worker(actor: Any) -> Worker:
    def worker(recipe: Recipe, best: Recipe) -> Future[Tried]:
        future: Future[Tried] = actor.trial.remote(recipe, best).future()
        return future

    return worker


def _end(ray: Any, actors: Iterable[Any], notes: list[str]) -> None:
    for actor in actors:
        try:
            ray.kill(actor)
        except Exception as error:  # noqa: BLE001 - what was found is not lost because Ray is gone
            notes.append(f"a worker could not be ended: {type(error).__name__}: {error}"[:300])


def _moved(ray: Any, task: Task, notes: list[str]) -> Any:
    """The task in Ray's object store; None where it cannot be moved."""
    try:
        return ray.put(task)
    except Exception as error:  # noqa: BLE001 - a stranger's model may refuse to be moved in any way
        cause = error.__cause__ or error  # Ray's own text is about how to look for what its cause says
        notes.append(f"the model cannot be moved to workers: {type(cause).__name__}: {cause}"[:300])
        return None


def _over(ray: Any, calls: Mapping[Any, Any], limit: float, notes: list[str], what: str) -> list[Any]:
    """The actors whose call is over at a time limit, on the clock of `time.monotonic`; notes why others are not among them."""
    if not calls:
        return []
    left = max(0.0, limit - time.monotonic())
    over, _ = ray.wait([*calls], num_returns=len(calls), timeout=left)
    done = []
    for call, actor in calls.items():
        try:
            if call in over:
                ray.get(call)
                done.append(actor)
            else:
                notes.append(
                    f"a worker was not {what} in its share of the time: give more seconds, or fewer workers"
                )
        except Exception as error:  # noqa: BLE001 - whatever happens to a worker, the others, or this process, make its trials
            notes.append(f"a worker could not begin: {type(error).__name__}: {error}"[:300])
    return done


def _told(given: Sequence[Collection[int]]) -> str:
    if not given:
        return "no worker was there: trials were made in this process"
    cores = "; ".join(", ".join(map(str, sorted(one))) for one in given)
    return f"trials were made by {len(given)} workers, each on processors of its own: {cores}"


def _shares(cores: Sequence[frozenset[int]], count: int, threads: int) -> list[frozenset[int]]:
    """The processors of each worker: as many cores as it has threads, none of them twice, for as many workers as that is enough for.

    Example:
        >>> [sorted(share) for share in _shares([frozenset({0, 4}), frozenset({1, 5}), frozenset({2})], 3, 1)]
        [[0, 4], [1, 5], [2]]
        >>> [sorted(share) for share in _shares([frozenset({0, 4}), frozenset({1, 5}), frozenset({2})], 3, 2)]
        [[0, 1, 4, 5]]
    """
    fit = min(count, len(cores) // threads)
    return [frozenset().union(*cores[i * threads : (i + 1) * threads]) for i in range(fit)]


def _read_cores(given: Sequence[Collection[int]]) -> tuple[frozenset[int], ...]:
    """The cores meant. Raises `InputError` where they are none, overlap, or may not be run on."""
    try:
        cores = tuple(frozenset(one) for one in given)
    except TypeError as error:
        raise InputError(
            f"cores takes the processors of each core, as [{{0, 4}}, {{1, 5}}], got {given!r:.80}"
        ) from error
    allowed, named = os.sched_getaffinity(0), frozenset().union(*cores)
    if not cores or not all(cores) or not named <= allowed:
        raise InputError(
            f"cores takes the processors of each core, of those that this process may run on ({sorted(allowed)}), got {given!r:.80}"
        )
    if len(named) < sum(map(len, cores)):
        raise InputError(f"cores: {given!r:.80} name a processor twice, and no two workers may share one")
    return cores


def _own_cores() -> tuple[frozenset[int], ...]:
    """The cores that this process may run on, as many of them as it may use at once."""
    allowed = os.sched_getaffinity(0)
    cores = dict.fromkeys(_siblings(processor) & allowed for processor in sorted(allowed))
    return tuple(cores)[: _quota(Path("/sys/fs/cgroup/cpu.max"))]


def _siblings(processor: int) -> frozenset[int]:
    """The processors of the core that has this one; this one alone where the system does not say."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return frozenset({processor})
    ends = [part.partition("-") for part in text.strip().split(",")]
    return frozenset(n for low, _, high in ends for n in range(int(low), int(high or low) + 1)) | {processor}


def _quota(path: Path) -> int | None:
    """How many processors' time a container is given, one at least; None where it is not limited."""
    try:
        most, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(1, int(most) // int(period))
