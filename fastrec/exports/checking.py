"""Whether an exported file is what it says: valid ONNX, and in ONNX Runtime, bare and optimised, the model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifact import Contents
from ..artifact.example import drawn
from ..errors import BackendError, MeasurementError
from ..measure import fidelity
from ..program import Program
from .graph import Port, is_rounded

__all__ = ["check"]

_ROWS = (1, 2, 33)
_WHO = "onnxruntime"
# A number in 8 bits that rounds to the next code moves an answer by a step, which no spread of answers hides.
_STEPS = 0.05


def check(
    path: Path, program: Program, inputs: tuple[Port, ...], outputs: tuple[Port, ...], contents: Contents
) -> float:
    """The largest difference of answers to drawn batches of several numbers of rows. Raises `BackendError` where they differ by more
    than rounding, the steps of numbers in fewer bits among it.

    Cost: two sessions, one after the other, each with its own copy of the tables.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # whatever the checker raises, named
        raise BackendError(f"{path.name} is no valid ONNX model: {error}"[:500], backend=_WHO) from error
    rounded, off = is_rounded(program), 0.0
    batches = list(_batches(program, contents))
    for optimised in (False, True):
        session = _session(path, optimised)
        got_names = [item.name for item in session.get_outputs()]
        if got_names != [port.name for port in outputs]:
            raise BackendError(f"{path.name} has outputs {got_names}", backend=_WHO)
        for flat, wanted in batches:
            feed = {port.name: tensor.numpy(force=True) for port, tensor in zip(inputs, flat, strict=True)}
            given = [torch.from_numpy(array) for array in session.run(got_names, feed)]
            off = max(off, _differing(wanted, given, rounded, "optimised" if optimised else "bare"))
        del session
    return off


def _differing(wanted: list[Tensor], given: list[Tensor], rounded: bool, how: str) -> float:
    try:
        found = fidelity(wanted, given)
    except MeasurementError as error:
        raise BackendError(f"the exported model ({how}) answers otherwise: {error}", backend=_WHO) from error
    spread = found.max_relative_to_spread
    steps = rounded and found.nonfinite_alike and spread is not None and spread <= _STEPS
    if not (found.exact or steps):
        raise BackendError(
            f"the exported model ({how}) answers otherwise than the model by up to {found.max_abs:.3g}, "
            "more than rounding: it is not written",
            backend=_WHO,
        )
    return found.max_abs


def _session(path: Path, optimised: bool) -> Any:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a foreign library raises, named
        raise BackendError(f"ONNX Runtime does not take {path.name}: {error}"[:500], backend=_WHO) from error


def _batches(program: Program, contents: Contents) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Drawn batches as the graph takes them, and its answers. Raises `BackendError` where none can be drawn."""
    layout, once, made, reason = contents.original.layout, contents.once, [], ""
    counts = [n for n in _ROWS if n not in program.layout.exempt] if layout.rows is not None else [1]
    for rows in counts:
        for given in drawn(layout.features, contents.guard, rows):
            flat = once.one(once.same(given))
            try:
                if contents.guard is not None:
                    contents.guard(flat)
                made.append((flat, [tensor.clone() for tensor in program.answers(flat)]))
            except Exception as error:  # noqa: BLE001 - what was drawn may be nothing that the model takes: the next one may
                reason = f"{type(error).__name__}: {error}"[:300]
                continue
            break
    if not made:
        raise BackendError(f"no batch could be drawn to check the file with: {reason}", backend=_WHO)
    return made
