"""`fastrec export-onnx` and `fastrec export-triton`: a saved model for other servers."""

from __future__ import annotations

from pathlib import Path

from ..compressed import load
from ..exports import Exported
from .outcome import Outcome

__all__ = ["as_onnx", "as_triton"]


def as_onnx(folder: Path, file: Path, *, everywhere: bool) -> Outcome:
    """Writes the ONNX file of a folder."""
    return _told(load(folder).export_onnx(file, everywhere=everywhere))


def as_triton(
    folder: Path, repository: Path, *, name: str, version: int, max_batch_size: int, everywhere: bool
) -> Outcome:
    """Writes a folder into a model repository."""
    fast = load(folder)
    return _told(
        fast.export_triton(
            repository, name=name, version=version, max_batch_size=max_batch_size, everywhere=everywhere
        )
    )


def _told(made: Exported) -> Outcome:
    data = {
        "path": made.path,
        "files": list(made.files),
        "inputs": [{"name": port.name, "shape": list(port.shape)} for port in made.inputs],
        "outputs": [{"name": port.name, "shape": list(port.shape)} for port in made.outputs],
        "max_abs": made.max_abs,
        "rows_apart": made.separate,
    }
    lines = [f"wrote {', '.join(made.files)}"]
    for what, ports in (("takes", made.inputs), ("gives", made.outputs)):
        lines += [f"  {what} {port.name}: {' x '.join(map(str, port.shape)) or 'a number'}" for port in ports]
    lines.append(f"checked in ONNX Runtime: answers are off by {made.max_abs:.1g} at most")
    return Outcome(data, "\n".join(lines))
