"""The texts of docs/scoring.md, run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text("utf-8")
BLOCKS = [part.partition("```")[0] for part in TEXT.split("```python\n")[1:]]
HOLDING = ("ProcessPoolExecutor", "scorer.score", "map_batches", "mapInPandas")


def run(holding: str, **given: Any) -> dict[str, Any]:
    """The names that a text leaves, run with those given."""
    (code,) = [block for block in BLOCKS if holding in block]
    names = {"__name__": "text", **given}
    exec(compile(code, f"docs/scoring.md: {holding}", "exec"), names)
    return names
