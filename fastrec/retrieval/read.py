"""What callers give an index, checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import IdOutOfRangeError, InputError
from .scan import LeftOut
from .stored import Stored

__all__ = ["Seen", "read_count", "read_matrix", "read_seen"]

Seen = Tensor | Sequence[Tensor | Sequence[int]]


def read_matrix(given: object, name: str, width: int | None = None) -> Tensor:
    """A matrix (n, d) of finite float32. Raises `InputError`."""
    if not isinstance(given, Tensor):
        raise InputError(f"{name}: got {type(given).__name__}, expected a tensor", feature=name)
    matrix = given.detach()
    if matrix.dim() != 2 or (width is not None and matrix.shape[1] != width):
        wanted = f"(n, {'d' if width is None else width})"
        raise InputError(
            f"{name}: got shape {tuple(matrix.shape)}, expected {wanted}, one row each", feature=name
        )
    if matrix.dtype != torch.float32 or matrix.device.type != "cpu":
        raise InputError(
            f"{name}: got {matrix.dtype} on {matrix.device}, expected torch.float32 on cpu. Convert by "
            f"{name}.float().cpu().",
            feature=name,
        )
    finite = matrix.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise InputError(
            f"{name}, row {row}: NaN or infinite, expected finite numbers", feature=name, row=row
        )
    return matrix.contiguous()


def read_count(given: object, name: str, most: int | None = None) -> int:
    """A whole number from 1 on. Raises `InputError`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError(f"{name}: got {given!r:.80}, expected a whole number from 1 on", feature=name)
    if most is not None and given > most:
        raise InputError(f"{name}: got {given:,}, expected at most the {most:,} items", feature=name)
    return given


def read_seen(given: Seen, stored: Stored, queries: int) -> LeftOut:
    """What each query must not be given. Raises `InputError`, `IdOutOfRangeError` at a row that there is not."""
    if len(given) != queries:
        raise InputError(
            f"seen: got rows for {len(given):,} queries, expected {queries:,}, one entry each", feature="seen"
        )
    parts = [torch.as_tensor(part) for part in given]
    for asked, part in enumerate(parts):
        whole = not (part.is_floating_point() or part.is_complex() or part.dtype == torch.bool)
        if part.dim() != 1 or not (whole or part.numel() == 0):
            raise InputError(
                f"seen, query {asked}: got {part.dtype} of shape {tuple(part.shape)}, expected row numbers in a vector",
                feature="seen",
                row=asked,
            )
    rows = torch.cat([part.long() for part in parts]) if parts else torch.empty(0, dtype=torch.long)
    asked_by = torch.repeat_interleave(torch.tensor([len(part) for part in parts], dtype=torch.long))
    bad = (rows < -1) | (rows >= stored.count)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise IdOutOfRangeError(
            f"seen, query {int(asked_by[first])}: got row {int(rows[first])}, expected 0 <= row < {stored.count:,}, "
            "or -1 for none.",
            feature="seen",
            row=int(asked_by[first]),
        )
    real = rows >= 0
    places, order = stored.place[rows[real]].sort()
    return LeftOut(asked_by[real][order], places)
