"""Whether many threads get what one gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..trees import tensors_of
from .pair import Flat, Pair

__all__ = ["check_threads"]

_THREADS, _CALLS = 8, 25
_SIZES = (1, 3, 33)


def check_threads(pair: Pair) -> None:
    """Raise `AssertionError` where a call beside others gives other bits than alone, or none."""
    batches = [
        flat for flat in (pair.some(count) for count in _SIZES if pair.layout.rows is not None) if flat
    ]
    batches += pair.flat
    serial = [tensors_of(pair.answer(flat, "one thread")) for flat in batches]

    def ask(thread: int) -> None:
        for call in range(_CALLS):
            index = (thread + call) % len(batches)
            where = f"thread {thread} of {_THREADS}, call {call}"
            given: Flat = tensors_of(pair.answer(batches[index], where))
            if len(given) != len(serial[index]) or not all(map(_same, serial[index], given)):
                raise AssertionError(
                    f"{where}: the answer is not bit for bit what one thread gets for that batch"
                )

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(ask, thread) for thread in range(_THREADS)]:
            done.result()


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return (
        bool(((left == right) | (left.isnan() & right.isnan())).all())
        if left.layout == torch.strided
        else True
    )
