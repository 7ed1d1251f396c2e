"""`python -m benchmarks.efficiency`: puts the committed records on `docs/efficiency.md`, and their summary into the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean

from fastrec.wording import spans, times

from . import searching
from .marks import put
from .pages import ROOT, results
from .results import Cell, Results
from .searching import ORIGINAL, SIZES, Row, Searched
from .tables import MEANT, brief

__all__ = ["gains", "pages", "summary", "with_table"]

PAGE, README = ROOT / "docs" / "efficiency.md", ROOT / "README.md"
ASKED: Mapping[tuple[bool, bool], str] = {
    (False, False): "exact",
    (True, False): "exact, the request known",
    (False, True): "int8",
    (True, True): "int8, the request known",
}
"""What a record of a run was asked for: one request a call, and int8."""


def with_table(page: str, found: Results) -> str:
    """The page with the table of these results between its marks: `table`, `request table` for one request a call, `int8 table`,
    `request int8 table`, and so on.

    Raises `ValueError` for a page without those marks.
    """
    kinds = {"request": found.request, "int8": found.int8, "bf16": found.bf16}
    mark = " ".join([*(kind for kind, held in kinds.items() if held), "table"])
    machines = dict.fromkeys(str(case.machine) for case in found.cases.values())
    return put(page, mark, "\n\n".join([next(iter(machines), ""), brief(found)]))


def summary(runs: Sequence[Results]) -> str:
    """Each run in a line: geometric means over the six architectures, and the worst and the best cell of all that were measured."""
    lines = [
        "| | cells | over eager | worst to best | over the strongest peer | worst to best |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for found in runs:
        cells = [(name, cell) for name, case in found.cases.items() for cell in case.cells]
        eager = [(name, cell.speedup["eager"].value) for name, cell in cells]
        peer = [(name, cell.speedup[_strongest(cell, found)].value) for name, cell in cells]
        lines.append(
            f"| {ASKED[found.request, found.int8]} | {len(cells)} | {_mean(eager)} | {_range(eager)} | {_mean(peer)} | {_range(peer)} |"
        )
    return "\n".join(lines)


def _strongest(cell: Cell, found: Results) -> str:
    return cell.best(found.rivals) or "eager"


def _mean(ratios: Sequence[tuple[str, float]]) -> str:
    return f"**{times(geometric_mean([ratio for name, ratio in ratios if name in MEANT]))}**"


def _range(ratios: Sequence[tuple[str, float]]) -> str:
    values = [ratio for _, ratio in ratios]
    return spans(times(min(values)), times(max(values)))


def gains(found: Searched) -> str:
    """What each recipe gains over the model as it is, beside what it loses, on trained models and real rows."""
    lines = [
        f"{found.machine}", "",
        f"| model | recipe | AUC lost | at most (95 %) | {' | '.join(f'faster at {size}' for size in SIZES)} |",
        "|---|---|--:|--:|" + "--:|" * len(SIZES),
    ]  # fmt: skip
    for data in dict.fromkeys(row.data for row in found.rows):
        rows = [row for row in found.rows if row.data == data]
        original = next(row for row in rows if row.recipe == ORIGINAL)
        lines += [_gain(row, original) for row in rows if row is not original]
    return "\n".join(lines)


def _gain(row: Row, original: Row) -> str:
    # Both were timed beside what was found, in turns.
    faster = (times(original.found[str(n)].value / row.found[str(n)].value) for n in SIZES)
    name = f"{row.recipe}: `{row.approximates}`" if row.recipe == "found" else row.recipe
    return f"| {row.data} | {name} | {row.lost:.5f} | {row.upper:.5f} | {' | '.join(faster)} |"


def pages() -> dict[Path, str]:
    """Both pages, as the committed records say."""
    page, readme = PAGE.read_text(), README.read_text()
    runs = [Results.read(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    runs.sort(key=lambda found: (found.int8, found.request))
    for found in runs:
        page = with_table(page, found)
    for path in sorted(results("searching").glob("*.json")):
        page = put(page, "gains", gains(searching.read(path)))
    return {PAGE: page, README: put(readme, "summary", summary(runs))}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
