"""Pages of the documentation with what benchmarks found between their marks."""

from __future__ import annotations

__all__ = ["put"]


def put(page: str, mark: str, text: str) -> str:
    """The page with this text between `<!-- mark -->` and `<!-- /mark -->`. Raises `ValueError` for a page without those marks."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no {start} ... {end}")
    return f"{before}{start}\n{text}\n{end}{after}"
