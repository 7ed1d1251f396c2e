"""Numbers and foreign names as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = [
    "amount",
    "at",
    "clean",
    "count",
    "difference",
    "duration",
    "flush_right",
    "share",
    "sized",
    "spans",
    "times",
]


def duration(seconds: float) -> str:
    """Three figures and the unit that fits.

    Example:
        >>> duration(0.00031234), duration(0.0123), duration(75)
        ('312 us', '12.3 ms', '75.0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-9)} ns"


def spans(low: str, high: str) -> str:
    """An interval; a unit that both ends share is written once.

    Example:
        >>> spans("300 us", "320 us"), spans("990 us", "1.01 ms"), spans("2.01x", "2.12x")
        ('300 to 320 us', '990 us to 1.01 ms', '2.01 to 2.12x')
    """
    for unit in (" s", " ms", " us", " ns", "x"):
        if low.endswith(unit) and high.endswith(unit):
            return f"{low.removesuffix(unit)} to {high}"
    return f"{low} to {high}"


def amount(size: int) -> str:
    """Bytes in binary units.

    Example:
        >>> amount(512), amount(1536), amount(-3 * 2**20)
        ('512 B', '1.50 KiB', '-3.00 MiB')
    """
    if abs(size) < 1024:
        return f"{size:,} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - read after the loop
        value /= 1024
        if abs(value) < 999.5:
            break
    return f"{_three(value)} {unit}"


def times(ratio: float) -> str:
    """A speed-up.

    Example:
        >>> times(1.0), times(12.345), times(0.9512)
        ('1.00x', '12.3x', '0.951x')
    """
    return f"{_three(ratio)}x"


def difference(value: float) -> str:
    """An error, where only the magnitude matters.

    Example:
        >>> difference(0.0), difference(2.98e-08)
        ('0', '3.0e-08')
    """
    return "0" if value == 0 else f"{value:.1e}"


def share(value: float) -> str:
    """A share in per cent, never rounded up to all of it.

    Example:
        >>> share(1.0), share(0.99999), share(0.25)
        ('100 %', '99.9 %', '25.0 %')
    """
    return "100 %" if value == 1 else f"{min(value * 100, 99.9):.1f} %"


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "row"), count(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def at(rows: Sequence[int], counted: bool = True) -> str:
    """At which numbers of rows; of a model whose rows are not `counted`, at the one shape that there is.

    Example:
        >>> at([1]), at([1, 100, 2000]), at([1], counted=False)
        ('at 1 row', 'at 1, 100 and 2,000 rows', "at the example's shape")
    """
    if not counted:
        return "at the example's shape"
    *first, last = [f"{number:,}" for number in rows]
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"at {listed} row{'' if [*rows] == [1] else 's'}"


def sized(rows: int, counted: bool = True) -> str:
    """A number of rows in a column of them; of a model whose rows are not `counted`, whose they are.

    Example:
        >>> sized(2000), sized(1, counted=False)
        ('2,000', "the example's")
    """
    return f"{rows:,}" if counted else "the example's"


def clean(name: str, limit: int = 80) -> str:
    """A foreign name on one line: no control or direction characters, white space joined, the middle of long ones cut.

    Example:
        >>> clean("user" + chr(10) + "id" + chr(27)), clean("x" * 500, limit=9)
        ('user id', 'xxxx…xxxx')
    """
    if len(name) > 4 * limit:  # cut first: looking at every character of a huge name is slow
        name = name[: 2 * limit] + name[-2 * limit :]
    spaced = "".join(" " if c.isspace() else c for c in name)
    printable = "".join(c for c in spaced if unicodedata.category(c)[0] != "C")
    text = " ".join(printable.split())
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit - 1 - limit // 2) :]}"


def flush_right(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of text in columns, flush right, the last one flush left.

    Example:
        >>> flush_right([("rows", "session"), ("1", "eager")])
        ['  rows  session', '     1  eager']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  " + "  ".join([*(cell.rjust(w) for cell, w in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in table
    ]


def _three(value: float) -> str:
    """Three significant figures without an exponent."""
    size = abs(value)
    digits = 3 if size < 0.9995 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:,.{digits}f}"
