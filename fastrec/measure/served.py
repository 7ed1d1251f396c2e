"""Models and batches as they are timed: how each is called is found before the clock runs.

What a module computes is timed without gradients, as it is served; any other callable as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import MeasurementError
from ..inputs import batch_call

__all__ = ["Call", "call_of", "fresh_batches", "served"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def served(target: Callable[..., Any]) -> Callable[[Call], object]:
    """What is timed: `target` with arguments that are made ready."""
    owner = target if isinstance(target, nn.Module) else getattr(target, "__self__", None)
    if not isinstance(owner, nn.Module):
        return lambda call: target(*call[0], **call[1])

    def without_gradients(call: Call) -> object:
        with torch.no_grad():
            return target(*call[0], **call[1])

    return without_gradients


def call_of(target: Callable[..., Any], batch: Any) -> Call:
    """How `target` is called with a batch: a tuple by position, a dict by name where the names are its own, else as one argument."""
    own = getattr(target, "call_of", None)
    if callable(own):
        found: Call = own(batch)
        return found
    return batch_call(target.forward if isinstance(target, nn.Module) else target, batch)


def fresh_batches(inputs: Any) -> Callable[[int], Any]:
    """The i-th batch: of a callable what it gives for i, of a list each in turn, every time through in another order.

    Anything else is one batch, which every call gets: its rows stay in the cache, which flatters. Raises
    `MeasurementError` for None and for an empty list.
    """
    if callable(inputs):
        made: Callable[[int], Any] = inputs
        return made
    batches = inputs if isinstance(inputs, list) else [inputs]
    if inputs is None:
        raise MeasurementError("inputs is None: give a batch, a list of batches, or a callable(i)")
    if not batches:
        raise MeasurementError("inputs is an empty list: give a batch, a list of batches, or a callable(i)")

    def batch(i: int) -> Any:
        through, place = divmod(i, len(batches))
        return batches[np.random.default_rng(through).permutation(len(batches))[place]]

    return batch
