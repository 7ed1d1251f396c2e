"""Options as what they mean, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import InputError

__all__ = ["aligned", "losses", "names", "numbers"]


def names(text: str, option: str) -> list[str]:
    """Names between commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise InputError(f"{option} takes names between commas, got {text!r:.80}")
    return found


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Example:
        >>> numbers("1,100", "--batch-sizes")
        (1, 100)
    """
    parts = names(text, option)
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"{option} takes whole numbers between commas, as 1,100, got {text!r:.80}")
    return tuple(int(part) for part in parts)


def losses(given: Iterable[str], option: str) -> dict[str, float]:
    """Metrics and what may be lost of each.

    Example:
        >>> losses(["auc=0.0002"], "--budget")
        {'auc': 0.0002}
    """
    found: dict[str, float] = {}
    for text in given:
        metric, _, number = text.partition("=")
        try:
            found[metric.strip()] = float(number)
        except ValueError as error:
            raise InputError(
                f"{option} takes a metric and a number, as auc=0.0002, got {text!r:.80}"
            ) from error
    return found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns, flush left.

    Example:
        >>> aligned([("a", "1"), ("bcd", "2")])
        ['  a    1', '  bcd  2']
    """
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
