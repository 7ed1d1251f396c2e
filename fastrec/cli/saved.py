"""What the commands read: artifacts and reports, and batches for a saved model that are nobody's data."""

from __future__ import annotations

from pathlib import Path

import torch

from ..artifact.example import ROWS, drawn
from ..artifact.folder import opened
from ..compressed import CompressedModel
from ..errors import InputError
from ..fresh import Fresh
from ..plan import Batches
from ..report import Report
from ..sessions import served_call

__all__ = ["batches_for", "bytes_of", "report_at"]

_TEXT = 256 << 20


def report_at(path: Path) -> Report:
    """The report of an artifact's folder, or of a file of JSON. Raises `InputError`, and what opening an artifact raises."""
    if path.is_dir() or (not path.exists() and path.suffix != ".json"):
        with opened(path) as files:
            text = files.read("report.json", _TEXT)
    else:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return Report.from_json(text.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def bytes_of(folder: Path) -> int:
    """What the files of an artifact take, as its manifest says."""
    with opened(folder, verify=False) as files:
        return sum(file.bytes for file in files.manifest.files.values())


def batches_for(fast: CompressedModel) -> Batches:
    """Fresh flat batches of one request each, drawn within what the guard allows. Raises `InputError` where the model takes none."""
    parts = fast.contents()
    layout, once, guard, reason = parts.original.layout, parts.once, parts.guard, ""
    for given in drawn(layout.features, guard, ROWS if layout.rows is not None else 1):
        flat = once.all(once.same(given))
        try:
            with torch.no_grad():
                served_call(fast)(flat)
        except Exception as error:  # noqa: BLE001 - what was drawn may be nothing that the model takes: the next one may
            reason = f"{type(error).__name__}: {error}"[:300]
            continue
        bounds = guard.bounds if guard is not None else (None,) * len(layout.features)
        fresh = Fresh(layout.features, [flat], bounds, redraw=True)
        return lambda rows, index: [t.contiguous() for t in once.all(once.same(fresh(rows, index)))]
    raise InputError(f"no batch could be drawn that the model takes: {reason}")
