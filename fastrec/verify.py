"""Whether a session answers as the original does, over batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .measure import fidelity
from .measure.accuracy import Fidelity
from .program import Program

__all__ = ["checked_rows", "verify"]

_CHECKED = (1, 2, 3, 33)


def checked_rows(captured: Program, sizes: Sequence[int]) -> list[int]:
    """The numbers of rows to compare at: small ones, the example's, and one that is served."""
    if captured.layout.rows is None:
        return [1]
    rows = sorted({*_CHECKED, min(sizes, key=lambda n: abs(n - 100)), captured.layout.rows})
    return [count for count in rows if count not in captured.layout.exempt]


def verify(
    original: Callable[[list[Tensor]], Sequence[Tensor]],
    session: Callable[[list[Tensor]], Sequence[Tensor]],
    fresh: Callable[[int, int], list[Tensor]],
    rows: Sequence[int],
    axes: Sequence[int | None],
) -> Fidelity | str:
    """The difference over batches of these many rows, or why the session may not serve.

    `axes` are the dimensions of the answers that count rows. The answers of all batches are judged together: what
    rounding may do to one is known by the spread of many.
    """
    before: list[list[Tensor]] = []
    after: list[list[Tensor]] = []
    for count in rows:
        for index in range(max(1, 16 // count)):
            flat = fresh(count, 7 + index)
            before.append(list(original(flat)))
            after.append(list(session(flat)))
            for old, new in zip(before[-1], after[-1], strict=True):
                if old.shape != new.shape or old.dtype != new.dtype:
                    return f"at {count} rows it answers {tuple(new.shape)} {new.dtype}, the original {tuple(old.shape)} {old.dtype}"
    found = fidelity(_joined(before, axes), _joined(after, axes))
    return found if found.exact else f"answers differ from the original's by {found.max_abs:.3g}"


def _joined(batches: Sequence[Sequence[Tensor]], axes: Sequence[int | None]) -> list[Tensor]:
    """The answers of several batches as one, along the dimensions that count rows."""
    joined = []
    for index, parts in enumerate(zip(*batches, strict=True)):
        axis = axes[index] if index < len(axes) else None
        joined.append(torch.cat(parts, axis) if axis is not None else torch.stack(parts))
    return joined
