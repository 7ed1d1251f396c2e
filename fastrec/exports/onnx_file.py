"""One ONNX file of what serves, in standard operators: lookups inside, any number of rows, names of the caller's features."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact import Contents
from ..artifact.replacing import beside
from ..artifact.tensors import dtype_name
from ..artifact.writing import described
from ..backends.onnx_export import standard_model
from ..errors import InputError
from ..program import Program
from ..version import VERSION
from .checking import check
from .graph import Port, inputs_of, outputs_of, served_graph

__all__ = ["Exported", "export_onnx", "written"]

INSIDE = 256 << 20
# A message of protobuf holds 2 GiB.
_MOST = 2_000_000_000
_LEAST = 1024


@dataclass(frozen=True)
class Exported:
    """What was written: the model's file, all files, the graph's inputs and outputs, and how far answers were off in the check.

    `separate` says that rows of one call may be of different callers: none is of a request, and each is answered by itself.
    """

    path: str
    files: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    max_abs: float
    separate: bool


def export_onnx(
    contents: Contents, path: str | os.PathLike[str], *, inside: int = INSIDE, everywhere: bool = True
) -> Exported:
    """Writes what serves as an ONNX file; see `CompressedModel.export_onnx`."""
    target = Path(os.path.abspath(os.fspath(path)))
    if target.suffix != ".onnx":
        raise InputError(f"an ONNX model is a file that ends in .onnx, got {str(target)!r}")
    if not isinstance(inside, int) or isinstance(inside, bool) or not 0 <= inside <= _MOST:
        raise InputError(f"inside takes a whole number of bytes, two billion at most, got {inside!r:.80}")
    with beside(target) as fresh:
        made = written(contents, fresh / target.name, inside=inside, everywhere=everywhere)
        places = [target.parent / Path(file).name for file in made.files]
        for file, place in reversed(list(zip(made.files, places, strict=True))):
            os.replace(file, place)
    return Exported(
        str(target), tuple(map(str, places)), made.inputs, made.outputs, made.max_abs, made.separate
    )


def written(contents: Contents, path: Path, *, inside: int, everywhere: bool) -> Exported:
    """The same straight to its place, where nobody looks yet: written, then checked."""
    import onnx_ir

    program = served_graph(contents)
    inputs = inputs_of(program)
    outputs = outputs_of(program, contents.original.layout, inputs)
    model = standard_model(program.model, "onnx", everywhere=everywhere)  # type: ignore[arg-type]  # captured: a graph
    _name(model, inputs, outputs)
    _describe(model, contents, program, (inputs, outputs), everywhere)
    held = [value.const_value for value in model.graph.initializers.values()]
    large = sum(tensor.nbytes for tensor in held if tensor is not None) > inside
    data = f"{path.name}.data"
    onnx_ir.save(model, path, external_data=data if large else None, size_threshold_bytes=_LEAST)
    files = (str(path), str(path.with_name(data))) if large else (str(path),)
    off = check(path, program, inputs, outputs, contents)
    layout = contents.original.layout
    separate = layout.independent and not contents.once and layout.rows is not None
    return Exported(str(path), files, inputs, outputs, off, separate)


def _name(model: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """Gives inputs, outputs and free sizes their names, and takes out what the exporter notes about this machine."""
    import onnx_ir

    graph = model.graph
    held = set(graph.inputs)
    for place, value in enumerate(graph.outputs):
        # An output that is an input, or that stands there twice, needs a value of its own.
        if value in held:
            node = onnx_ir.node("Identity", [value])
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
            node.outputs[0].type = value.type
        held.add(graph.outputs[place])
    ports = (*inputs, *outputs)
    taken = {port.name for port in ports}
    for number, value in enumerate(_values(graph)):
        value.metadata_props.clear()
        value.doc_string = None
        if value not in held:
            value.shape = None if value.producer() is not None else value.shape
            if value.name in taken or not value.name:
                value.name = f"{value.name}_inside_{number}"
    for value, port in zip((*graph.inputs, *graph.outputs), ports, strict=True):
        value.name = port.name
        value.shape = onnx_ir.Shape(port.shape)
    for one in (model, graph):
        one.metadata_props.clear()
        one.doc_string = None
    graph.name = "fastrec"
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None


def _values(graph: Any) -> Iterator[Any]:
    import onnx_ir

    yield from graph.inputs
    yield from graph.initializers.values()
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs


def _describe(
    model: Any, contents: Contents, program: Program, ports: tuple[tuple[Port, ...], ...], everywhere: bool
) -> None:
    """Puts in who wrote it, what it does and what it takes."""
    ranges = {one.name: one for one in described(contents)}
    inputs = []
    for feature, port in zip(program.layout.features, ports[0], strict=True):
        known = ranges[feature.name]
        inputs.append({**_port(port), "low": known.low, "below": known.high, "role": feature.role})
    model.producer_name, model.producer_version = "fastrec", VERSION
    model.metadata_props.update({
        "fastrec": VERSION,
        "exact": "true" if contents.exact else "false",
        "recipe": contents.recipe.to_json(),
        "inputs": json.dumps(inputs),
        "outputs": json.dumps([_port(port) for port in ports[1]]),
        "request_features": json.dumps([port.name for port in ports[0] if port.request is True]),
        "int8_weights": "unsigned" if everywhere else "as the processor it was written on takes them",
        "not_rows": json.dumps(list(program.layout.exempt)),
    })  # fmt: skip


def _port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "dtype": dtype_name(port.dtype),
        "shape": list(port.shape),
        "request": port.request,
    }
