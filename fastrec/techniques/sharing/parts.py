"""Rows some at a time: few enough that what is worked out of them takes little memory."""

from __future__ import annotations

__all__ = ["parts"]

_ENTRIES = 1 << 20


def parts(size: int, width: int, entries: int = _ENTRIES) -> list[slice]:
    """Slices of `size` rows, of so many entries each where a row has `width`.

    Example:
        >>> parts(5, 2, 4)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, entries // width)
    return [slice(start, start + step) for start in range(0, size, step)]
