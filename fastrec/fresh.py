"""Fresh batches for timing: rows drawn anew, and ids that the caches have not just seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .guards import Bounds
from .inputs import Feature
from .rows import count_rows, take_rows

__all__ = ["Fresh"]


class Fresh:
    """Draws flat batches of any number of rows, the same ones for the same seed.

    Rows come from the given batches. With `redraw`, ids that may take any of a table's rows are drawn anew,
    uniformly, except 0, which so often means padding that it stays: an example of a few rows would otherwise be
    looked up from a warm cache on every call.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        batches: Sequence[Sequence[Tensor]],
        bounds: Sequence[Bounds | None],
        *,
        redraw: bool,
        seed: int = 0,
    ) -> None:
        self._features = tuple(features)
        self._batches = [list(batch) for batch in batches]
        self._bounds = tuple(bounds) if redraw else (None,) * len(self._features)
        self._seed = seed

    def __call__(self, rows: int, index: int) -> list[Tensor]:
        """Batch number `index` of `rows` rows."""
        rng = np.random.default_rng((self._seed, rows, index))
        batch = self._batches[index % len(self._batches)]
        have = count_rows(self._features, batch)
        if have:
            batch = take_rows(self._features, batch, torch.from_numpy(rng.integers(0, have, rows)))
        return [self._redrawn(t, b, rng) for t, b in zip(batch, self._bounds, strict=True)]

    def _redrawn(self, tensor: Tensor, bound: Bounds | None, rng: np.random.Generator) -> Tensor:
        if bound is None or tensor.numel() == 0:
            return tensor
        old = tensor.numpy(force=True)
        limits = np.broadcast_to(np.where(np.isinf(bound.high), 1.0, bound.high), old.shape)
        drawn = np.floor(rng.random(old.shape) * limits)
        kept = (old == 0) | np.isinf(np.broadcast_to(bound.high, old.shape)) | (limits < 2)
        return torch.from_numpy(
            np.where(kept, old, np.maximum(drawn, np.maximum(bound.low, 1))).astype(old.dtype)
        )
