"""The page of an artifact: what it is, what it takes, how it is loaded, what was measured, what it does not do."""

from __future__ import annotations

from collections.abc import Sequence

from ..render.markdown import escape, markdown
from ..report import Report
from ..wording import clean
from .manifest import Fallback, Input, Session

__all__ = ["card"]


def card(report: Report, inputs: Sequence[Input], sessions: Sequence[Session], fallback: Fallback) -> str:
    """The page as Markdown. Names are the caller's, and are shown as text."""
    given = ", model=original" if fallback.kind == "model" else ""
    lines = [
        "# A compressed recommender",
        "",
        f"Made by fastrec. {_text(report.headline)}.",
        "",
        "```python",
        "import fastrec",
        "",
        f'fast = fastrec.load("this folder"{given})',
        "```",
        "",
        "## Inputs",
        "",
        "| name | dtype | shape | of the request | ids |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in inputs:
        shape = " x ".join("N" if size is None else str(size) for size in one.shape) or "a number"
        ids = "" if one.high is None else f"{one.low or 0:,} to {one.high - 1:,}"
        mine = "yes" if one.request is True else "columns" if one.request else ""
        lines.append(f"| {_text(one.name)} | {one.dtype} | {shape} | {mine} | {ids} |")
    lines += [
        "",
        markdown(report).replace("\n### ", "\n#### ").replace("## ", "## What was measured: ", 1),
        "",
        "## Limits",
        "",
        "- Inference on a CPU. On the machine it was saved on, with as many threads, it gives the same bits as before; elsewhere the same up to rounding.",
    ]
    if fallback.kind == "model":
        lines.append("- The original could not be captured: it has to be given to be loaded.")
    else:
        lines.append(
            "- Batches in other shapes than the inputs above are refused, unless the original is given: `load(folder, model=original)`."
        )
    if any(session.backend == "inductor" for session in sessions):
        lines.append("- A C++ compiler is used as it is loaded; without one, torch's own kernels serve.")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A text of the caller's, in which nothing is markup."""
    return escape(clean(value, 200))
