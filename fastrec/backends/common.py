"""What the compiling backends share: reading the program, sizes, and errors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..errors import BackendError
from ..ops import INT4, INT8
from ..ops.convolutions import INT8_CONVOLUTION
from ..places import named
from ..program import Program
from ..quiet import reason_of

__all__ = [
    "GIB",
    "captured",
    "example_of",
    "export_free",
    "failure",
    "is_reference",
    "refuse_bfloat16",
    "refuse_reference",
    "tensor_bytes",
]

GIB = 2**30


def captured(program: Program, backend: str) -> fx.GraphModule:
    """The program's graph. Raises `BackendError` when it has not been captured."""
    if not isinstance(program.model, fx.GraphModule):
        raise BackendError("compiles captured graphs only: capture the program first", backend=backend)
    return program.model


def export_free(gm: fx.GraphModule, backend: str) -> torch.export.ExportedProgram:
    """The graph exported afresh, its free sizes still free, with nothing printed.

    A fresh export has a size environment of its own, so what a compiler learns of sizes stays out of `gm`.

    Raises `BackendError` when a size that was free would be frozen, or rows held as small integers are looked up by
    ids that are computed here.
    """
    coded = [node.name for node in gm.graph.nodes if node.target in (INT8, INT4)]
    if coded:
        raise BackendError(
            f"{coded[0]} reads rows of small integers by computed ids: only torch does", backend=backend
        )
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    auto = torch.export.Dim.AUTO
    sizes = tuple(
        {axis: auto for axis, size in enumerate(node.meta["val"].shape) if isinstance(size, torch.SymInt)}
        for node in inputs
    )
    with torch.no_grad():
        exported = torch.export.export(gm, example_of(inputs), dynamic_shapes=sizes, strict=False)
    frozen = _frozen(inputs, exported)
    if frozen:
        raise BackendError(f"the batch size would be frozen on {', '.join(frozen)}", backend=backend)
    return exported


def example_of(nodes: Iterable[fx.Node]) -> tuple[Tensor, ...]:
    """Zeros in the shapes and types the graph was captured with, one per node."""
    found = []
    for node in nodes:
        value = node.meta["val"]
        found.append(torch.zeros(tuple(_hint(size) for size in value.shape), dtype=value.dtype))
    return tuple(found)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, those that share their storage counted once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        place = tensor.untyped_storage().data_ptr()
        sizes[place] = max(sizes.get(place, 0), tensor.numel() * tensor.element_size())
    return sum(sizes.values())


def is_reference(node: fx.Node) -> bool:
    """Whether the node calls an operator of ours, which computes with, or looks up, numbers in fewer bits."""
    return isinstance(node.target, OpOverload) and node.target.namespace == "fastrec"


def refuse_reference(gm: fx.GraphModule, backend: str) -> None:
    """Raises `BackendError` for a graph with a reference operator, to a backend that has no kernel for any.

    Lookups are left to `export_free`, which refuses those that are no part of the front.
    """
    for node in gm.graph.nodes:
        if is_reference(node) and node.target not in (INT8, INT4):
            name = node.target._schema.name
            able = (
                "convolutions in 8-bit integers run in onnxruntime, and slowly in eager"
                if node.target is INT8_CONVOLUTION
                else "linear maps in 8-bit integers run in onnxruntime, eager and inductor"
            )
            raise BackendError(f"has no kernel for {name} (at {named(node)}): {able}", backend=backend)


def refuse_bfloat16(gm: fx.GraphModule, backend: str, why: str) -> None:
    """Raises `BackendError`, saying `why`, for a graph with a linear map in bfloat16."""
    for node in gm.graph.nodes:
        if node.target is torch.ops.aten.linear.default and node.meta["val"].dtype is torch.bfloat16:
            raise BackendError(
                f"{why} (at {named(node)}): linear maps in bfloat16 run in eager and openvino",
                backend=backend,
            )


def failure(error: BaseException, what: str, backend: str) -> BackendError:
    """The error as a `BackendError` that says what failed and, in one line, why."""
    return (
        error
        if isinstance(error, BackendError)
        else BackendError(f"{what}: {reason_of(error)}", backend=backend)
    )


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint if size.node.has_hint() else 2)


def _frozen(inputs: list[fx.Node], exported: torch.export.ExportedProgram) -> list[str]:
    """Inputs with a size that was free before the export and is fixed after it."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    frozen = []
    for node, name in zip(inputs, exported.graph_signature.user_inputs, strict=True):
        pairs = zip(node.meta["val"].shape, nodes[str(name)].meta["val"].shape, strict=True)
        if any(isinstance(a, torch.SymInt) and not isinstance(b, torch.SymInt) for a, b in pairs):
            frozen.append(str(node.target))
    return frozen
