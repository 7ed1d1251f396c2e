"""`fastrec inspect`, `fastrec verify` and `fastrec report`: what a folder holds, whether it is sound, what was measured."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..artifact import Manifest, check, read
from ..backends import ModelSession
from ..errors import InputError
from ..measure import fidelity
from ..plain import to_plain
from ..plan import ORIGINAL
from ..render import csv, markdown, terminal, write_html
from ..wording import amount, at, clean, difference
from .factory import here, model_of
from .outcome import FAILED, OK, Outcome
from .saved import report_at
from .words import aligned

__all__ = ["inspected", "reported", "verified"]

# Of answers whose numbers have fewer bits: one that rounds to the next code moves an answer by a step.
_STEPS = 0.05
_WIDE = 140


def inspected(folder: Path) -> Outcome:
    """What a folder says of itself. Everything in it is checked, nothing in it is run."""
    manifest = check(folder)
    data = to_plain(manifest, "manifest")
    kept = (
        "fastrec",
        "status",
        "headline",
        "exact",
        "inputs",
        "plan",
        "recipe",
        "threads",
        "machine",
        "files",
    )
    shown: dict[str, Any] = {key: data[key] for key in kept}
    shown["sessions"] = [
        {key: one[key] for key in ("name", "backend", "settings", "whole")} for one in data["sessions"]
    ]
    shown["outputs"] = _outputs(manifest)
    shown["original"] = manifest.fallback.kind
    shown["bytes"] = sum(file.bytes for file in manifest.files.values())
    return Outcome({"folder": str(folder), **shown}, "\n".join(_inspected(folder, manifest, shown)))


def verified(folder: Path, *, model: str | None) -> Outcome:
    """Whether a folder is whole and safe, and whether what it holds answers here as it did where it was saved."""
    manifest = check(folder)
    with here():
        found = read(folder, model=None if model is None else model_of(model))
    parts, failed = found.contents, False
    rows: list[dict[str, Any]] = []
    for name, said in found.answers.items():
        flat = list(found.example or ())
        if name == ORIGINAL:
            given = ModelSession(parts.original)(*flat)
        else:
            given = found.sessions[name](*(flat if parts.sources[name].whole else parts.once.one(flat)))
        held, off = _judged(said, given, exact=parts.exact)
        failed = failed or not held
        rows.append({"session": name, "holds": held, "identical": off == 0.0, "max_abs": off})
    files = len(manifest.files) + 1
    total = sum(file.bytes for file in manifest.files.values())
    lines = [f"{folder}: {files} files, {amount(total)}, as they were written; nothing else is there"]
    for row in rows:
        how = "the same bits" if row["identical"] else f"off by up to {difference(row['max_abs'])}"
        lines.append(
            f"  {clean(str(row['session']), 60)}: {how}{'' if row['holds'] else ', more than rounding'}"
        )
    if not rows:
        lines.append("  it holds no recorded answers: digests and contents alone were checked")
    data = {"folder": str(folder), "digest": found.digest, "answers": rows, "notes": list(found.notes)}
    return Outcome(data, "\n".join(lines), FAILED if failed else OK, found.notes)


def reported(path: Path, *, page: Path | None, as_markdown: bool, tables: Path | None) -> Outcome:
    """A report as words, Markdown, a page, or files of CSV."""
    report, written, text = report_at(path), [], ""
    if page is not None:
        write_html(report, page)
        written.append(str(page))
    if tables is not None:
        try:
            tables.mkdir(parents=True, exist_ok=True)
            for name, table in csv(report).items():
                (tables / f"{name}.csv").write_text(table, newline="")
                written.append(str(tables / f"{name}.csv"))
        except OSError as error:
            raise InputError(f"{tables} cannot be written: {error.strerror or error}") from error
    if as_markdown:
        text = markdown(report)
    elif written:
        text = f"wrote {', '.join(written)}"
    else:
        file = io.StringIO()
        terminal(report, Console(file=file, width=shutil.get_terminal_size((_WIDE, 40)).columns))
        text = file.getvalue()
    data: dict[str, Any] = {"written": written, "report": json.loads(report.to_json())}
    if as_markdown:
        data["markdown"] = text
    return Outcome(data, text)


def _judged(said: Any, given: Any, *, exact: bool) -> tuple[bool, float]:
    """Whether answers are those that were recorded, up to rounding, and how far off they are."""
    found = fidelity(list(said), [tensor.clone() for tensor in given])
    spread = found.max_relative_to_spread
    steps = not exact and found.nonfinite_alike and spread is not None and spread <= _STEPS
    return found.exact or steps, found.max_abs


def _outputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The answer's tensors as the drawn batch shows them; sizes of None are free."""
    example = manifest.example
    if example is None:
        return []
    tensors = next(iter(example.answers.values())).tensors
    axes = list(manifest.layout.get("output_axes", ()))
    axes += [None] * (len(tensors) - len(axes))
    return [
        {"dtype": one["dtype"], "shape": [None if k == axis else n for k, n in enumerate(one["shape"])]}
        for one, axis in zip(tensors, axes, strict=True)
    ]


def _inspected(folder: Path, manifest: Manifest, shown: Mapping[str, Any]) -> list[str]:
    """The same in words."""
    lines = [
        f"{folder}: {clean(manifest.headline, 300)}",
        f"made by fastrec {manifest.fastrec}, {'exact' if manifest.exact else 'approximate'}, {amount(shown['bytes'])}",
        "inputs",
    ]
    inputs = []
    for one in manifest.inputs:
        ids = "" if one.high is None else f"ids {one.low or 0:,} to {one.high - 1:,}"
        mine = "of the request" if one.request is True else "columns of the request" if one.request else ""
        inputs.append((clean(one.name, 60), one.dtype, _shape(one.shape), ids, mine))
    lines += aligned(inputs)
    lines += ["outputs", *aligned([(one["dtype"], _shape(one["shape"])) for one in shown["outputs"]])]
    steps = [str(step["name"]) for step in shown["recipe"]["techniques"]]
    lines.append(f"recipe: {', '.join(steps) or 'none'}")
    if manifest.plan is None:
        lines.append("serves: the original")
    else:
        counted = manifest.layout.get("rows") is not None
        lines += [
            "serves",
            *aligned(
                [(at([rows], counted).removeprefix("at "), clean(name, 80)) for rows, name in manifest.plan]
            ),
        ]
    kinds = {
        "graph": "its captured graph",
        "plain": "what serves, in its plain form",
        "model": "the caller's model, to be given",
    }
    lines.append(f"other shapes: {kinds[manifest.fallback.kind]}")
    lines += [
        "files",
        *aligned([(name, amount(file.bytes)) for name, file in sorted(manifest.files.items())]),
    ]
    return lines


def _shape(shape: Any) -> str:
    return " x ".join("N" if size is None else str(size) for size in shape) or "a number"
