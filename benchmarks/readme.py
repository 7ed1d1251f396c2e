"""`python -m benchmarks.readme benchmarks/results/<machine>.json ...`: put the tables of results into the README."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .marks import put
from .results import Results
from .tables import brief

__all__ = ["main", "with_table"]

README = Path(__file__).parent.parent / "README.md"


def with_table(text: str, results: Results) -> str:
    """The page with the table of these results between its marks: `table`, `request table` for one request a call, `int8 table`,
    `request int8 table`, and so on.

    Raises `ValueError` for a page without those marks.
    """
    kinds = {"request": results.request, "int8": results.int8, "bf16": results.bf16}
    mark = " ".join([*(kind for kind, held in kinds.items() if held), "table"])
    return put(text, mark, brief(results))


def main(arguments: Sequence[str]) -> int:
    """Write the table of each file; 0 when all are in, 2 at one that is missing."""
    for name in arguments:
        if not Path(name).is_file():
            print(f"{name}: no such file of results", file=sys.stderr)
            return 2
        README.write_text(with_table(README.read_text(), Results.read(Path(name))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
