"""ONNX models of an artifact: written without a trace of the machine, and read only if they hold what ours hold.

Constants from outside are never looked up by a location: each has to be one of those that the manifest places in the
artifact's tensors, of the very size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsafeArtifactError

__all__ = ["ONNX_LIMIT", "screened", "stamped"]

ONNX_LIMIT = 64 << 20
_ENTRIES = 100_000
_DEPTH = 4
_MADE = 2**28
_DOMAINS = frozenset(["", "ai.onnx"])
_OURS = frozenset([("com.microsoft", "MatMulIntegerToFloat")])
# Operators that give as many numbers as a constant tells them, and which of their inputs tell it.
_FACTORIES = {
    "ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "Pad": (1,), "Resize": (3,),
}  # fmt: skip
_GRAPH = 7


def stamped(proto: bytes, version: str, features: list[str]) -> bytes:
    """The model with who wrote it and what its model's features are called, and without notes of the exporter's."""
    import onnx

    model = onnx.ModelProto.FromString(proto)
    _strip(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
    del model.metadata_props[:]
    for key, value in (("fastrec", version), ("features", json.dumps(features))):
        model.metadata_props.add(key=key, value=value)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def screened(proto: bytes, constants: Mapping[str, Tensor], where: str) -> bytes:
    """The model, if it holds nothing that ours do not.

    Raises `UnsafeArtifactError` at other operators, functions, constants from outside that are not of `constants`, too many
    nodes, or sizes that no model of ours makes.
    """
    import onnx

    try:
        count = sum(1 for _ in _entries(proto))
    except (IndexError, ValueError) as error:
        raise UnsafeArtifactError(f"{where} is no ONNX model: {error}", path=where) from error
    _expect(count <= _ENTRIES, where, f"{_ENTRIES:,} nodes and constants at most", count)
    try:
        model = onnx.ModelProto.FromString(proto)
    except Exception as error:  # whatever protobuf raises
        raise UnsafeArtifactError(f"{where} is no ONNX model: {error}", path=where) from error
    _expect(not model.functions and not model.training_info, where, "no functions", len(model.functions))
    for opset in model.opset_import:
        _expect(
            opset.domain in _DOMAINS or opset.domain == "com.microsoft",
            where,
            "operators of ONNX",
            opset.domain,
        )
    outside = {
        held.name for held in model.graph.initializer if held.data_location == onnx.TensorProto.EXTERNAL
    }
    _expect(
        outside == set(constants),
        where,
        "the constants that the manifest places",
        sorted(outside ^ set(constants)),
    )
    for held in model.graph.initializer:
        if held.name in outside:
            tensor = constants[held.name]
            _expect(
                list(held.dims) == list(tensor.shape),
                where,
                f"{held.name} of {list(tensor.shape)}",
                list(held.dims),
            )
            _expect(
                _TYPES.get(held.data_type) == tensor.dtype,
                where,
                f"{held.name} of {tensor.dtype}",
                held.data_type,
            )
            length = {item.key: item.value for item in held.external_data}.get("length", "")
            _expect(length == str(tensor.nbytes), where, f"{held.name} of {tensor.nbytes:,} bytes", length)
    _check_graph(model.graph, where, 0)
    return proto


# Numbers of TensorProto.DataType.
_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _check_graph(graph: Any, where: str, depth: int) -> None:
    import onnx

    _expect(depth < _DEPTH, where, "graphs that are not so deep", depth)
    _expect(not graph.sparse_initializer, where, "dense constants", "sparse ones")
    numbers: dict[str, Any] = {}
    for held in graph.initializer:
        external = held.data_location == onnx.TensorProto.EXTERNAL
        _expect(not external or not depth, where, "constants from outside at the top alone", held.name)
        if not external:
            _check_constant(held, where)
            numbers[held.name] = held
    for node in graph.node:
        ours = node.domain in _DOMAINS or (node.domain, node.op_type) in _OURS
        _expect(ours, where, "operators of ONNX", f"{node.domain}.{node.op_type}")
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _expect(
                    tensor.data_location != onnx.TensorProto.EXTERNAL, where, "constants inside", node.name
                )
                _check_constant(tensor, where)
            if node.op_type == "Constant" and attribute.name == "value" and node.output:
                numbers[node.output[0]] = attribute.t
            for inner in (attribute.g, *attribute.graphs):
                if len(inner.node):
                    _check_graph(inner, where, depth + 1)
        for place in _FACTORIES.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if name in numbers:
                _check_sizes(numbers[name], where, node.op_type)


def _check_constant(tensor: Any, where: str) -> None:
    count = math.prod(tensor.dims)
    _expect(0 <= count <= _MADE, where, f"constants of {_MADE:,} numbers at most", count)


def _check_sizes(tensor: Any, where: str, what: str) -> None:
    """Raises for a constant that tells an operator to make more numbers than any model of ours."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32) or math.prod(tensor.dims) > 64:
        return
    count = math.prod(abs(int(size)) or 1 for size in numpy_helper.to_array(tensor).ravel().tolist())
    # The end of a range may be as far as a number goes.
    _expect(count <= _MADE, where, f"{_MADE:,} numbers at most by {what}", count)


def _entries(proto: bytes) -> Iterator[int]:
    """The fields of the model's graph, one by one, unread: to count them before anything is made of them."""
    for field, low, high in _fields(proto, 0, len(proto)):
        if field == _GRAPH:
            for count, (inner, _, _) in enumerate(_fields(proto, low, high)):
                if count > _ENTRIES:
                    raise ValueError(f"its graph has more than {_ENTRIES:,} nodes and constants")
                yield inner


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each length-delimited field of a protobuf message."""
    while place < end:
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 2:
            size, place = _varint(data, place)
            if size > end - place:
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, place, place + size
            place += size
        elif kind == 0:
            _, place = _varint(data, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field is of kind {kind}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    found = shift = 0
    while shift < 70:
        byte = data[place]
        place += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, place
        shift += 7
    raise ValueError("a number is too long")


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        raise UnsafeArtifactError(f"{where}: expected {expected}, got {got!r:.120}", path=where)


def _strip(graph: Any) -> None:
    """Takes out notes of the exporter, which name files of the machine that it ran on."""
    del graph.metadata_props[:]
    graph.ClearField("doc_string")
    for one in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del one.metadata_props[:]
        one.ClearField("doc_string")
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if len(inner.node):
                    _strip(inner)
