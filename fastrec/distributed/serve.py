"""A Ray Serve deployment that answers the requests that wait together, whoever they are for.

Requests of different users are merged into one call (`serving.Merged`), and each caller gets its own answer, or its own
error. A replica opens the artifact in its own process, by the path and digest of its folder.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from ..artifact.folder import folder_digest, refuse_other
from ..compressed import CompressedModel, load
from ..errors import InputError
from ..packages import package

__all__ = ["Replica", "deployment", "open_folder", "served"]

_PATIENCE = 30.0
"""Seconds after which a replica that does not answer is not well."""

Scores = Callable[[Sequence[Any]], list[Any]]
"""Answers for the batches of several requests; where one is wrong, the error in its place."""


def deployment(
    folder: str | os.PathLike[str],
    *,
    types: Sequence[type] = (),
    merging: Mapping[str, Any] | None = None,
    max_batch_size: int = 16,
    wait_ms: float = 2.0,
    threads: int = 1,
    **options: Any,
) -> Any:
    """A Ray Serve application of the artifact in a folder: `serve.run(deployment("ranker"))`.

    A handle's `remote(batch)` takes one request, a batch as the model takes it, and gives the model's answer. Up to
    `max_batch_size` requests that come within `wait_ms` of the first are answered by one call, as are those that wait while
    another call runs. `merging` are settings of `CompressedModel.merged`, `types` those of `fastrec.load`; each replica
    computes with `threads` threads, and asks for as many CPUs. `options` go to Ray Serve's deployment: `num_replicas`, `max_ongoing_requests`
    (None: four batches), `name` and others.

    The folder has to be on every node that may have a replica. One that was written anew since is refused: deploy it again.

    Raises `PackageMissing` without Ray Serve, `ArtifactNotFoundError` and the like as `fastrec.load` does, `InputError` for settings out
    of range. Cost: that of reading the manifest.

    Example: `serve.run(deployment("ranker", num_replicas=2), name="ranker").remote(batch).result()`.
    """
    where = os.path.abspath(os.fspath(folder))
    settings = _merging(merging)
    opening = partial(open_folder, where, folder_digest(where), tuple(types), settings)
    return served(opening, max_batch_size=max_batch_size, wait_ms=wait_ms, threads=threads, **options)


def _merging(given: object) -> dict[str, Any]:
    """Settings of merging, by name. Raises `InputError` at once: a replica would say it where nobody looks."""
    if given is None:
        return {}
    known = [name for name in inspect.signature(CompressedModel.merged).parameters if name != "self"]
    if not isinstance(given, Mapping):
        raise InputError(
            f"merging takes settings by name, as merging={{'way': 'whole batch'}}, got a {type(given).__name__}"
        )
    if strange := [name for name in given if name not in known]:
        raise InputError(
            f"merging has no setting {strange[0]!r:.80}, it takes those of CompressedModel.merged: {', '.join(known)}"
        )
    return dict(given)


def served(
    opening: Callable[[], Scores], *, max_batch_size: int, wait_ms: float, threads: int, **options: Any
) -> Any:
    """A Ray Serve application of whatever `opening` gives in a replica's process: what scores several requests."""
    for name, value, least in (
        ("max_batch_size", max_batch_size, 1),
        ("wait_ms", wait_ms, 0),
        ("threads", threads, 1),
    ):
        kinds = (int, float) if name == "wait_ms" else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
            whole = "" if name == "wait_ms" else "whole "
            raise InputError(f"{name} takes a {whole}number from {least} on, got {value!r:.80}")
    serve = package("ray.serve", "ray", "distributed.serve")
    batched = serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait_ms / 1000)
    # A class of its own for each deployment: what gathers requests is one of its methods.
    kind = type("Ranker", (Replica,), {"together": batched(Replica.together), "__doc__": Replica.__doc__})
    given = {
        "max_ongoing_requests": 4 * max_batch_size,
        **options,
        "ray_actor_options": {"num_cpus": threads, **(options.get("ray_actor_options") or {})},
    }
    return serve.deployment(kind).options(**given).bind(opening, threads)


def open_folder(folder: str, digest: str, types: tuple[type, ...], merging: Mapping[str, Any]) -> Scores:
    """What scores the requests of the model in a folder. Raises `ArtifactError` where it is another than that of the digest."""
    model: CompressedModel = load(folder, types=types)
    refuse_other(folder, model.digest, digest, meant="was deployed", cure="Deploy it again.")
    return partial(model.merged(**merging).score_many, return_errors=True)


class Replica:
    """One process that answers requests: `opening` gives what scores several of them."""

    def __init__(self, opening: Callable[[], Scores], threads: int) -> None:
        # Torch's number of threads is that of the thread that asks, so one thread opens and calls.
        self._calls = ThreadPoolExecutor(1, "scores", partial(torch.set_num_threads, threads))
        self._scores = self._calls.submit(opening).result()

    async def __call__(self, request: Any) -> Any:
        """The answer to one request."""
        answer: Any = await self.together(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def together(self, requests: list[Any]) -> list[Any]:
        """The answers to several requests, by one call. Whoever waits meanwhile is in the next."""
        return await asyncio.get_running_loop().run_in_executor(self._calls, self._scores, requests)

    async def check_health(self) -> None:
        """Takes a turn of the thread that answers: where a call hangs, this does not come back in time."""
        turn = asyncio.get_running_loop().run_in_executor(self._calls, os.getpid)
        await asyncio.wait_for(turn, _PATIENCE)
