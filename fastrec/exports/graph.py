"""The graph that an export holds, and what its inputs and outputs are called and how they grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..artifact import Contents
from ..as_called import AsCalled
from ..backends.common import is_reference
from ..capture import capture
from ..errors import CaptureError
from ..inputs import Layout
from ..program import Program
from ..request import ask
from ..trees import Branch, Leaf, Tree

__all__ = ["ROWS", "Port", "inputs_of", "is_rounded", "outputs_of", "served_graph"]

ROWS = "rows"
"""What the free size is called that counts rows."""


@dataclass(frozen=True)
class Port:
    """An input or output of the graph: sizes that are names are free, `request` says that it has one row, or which columns are the request's."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    request: bool | tuple[int, ...] = False


def served_graph(contents: Contents) -> Program:
    """The captured program of what serves, of one request where features are declared so.

    Raises `CaptureError` for a model that was not captured, with the reason.
    """
    original = contents.original
    if contents.program is not None:
        return contents.program
    if any(not isinstance(source.program.model, fx.GraphModule) for source in contents.sources.values()):
        raise CaptureError("the model was not captured, its modules were edited: there is no graph to export")
    if isinstance(original.model, AsCalled):
        source = original.model.source
        if source is None:
            raise CaptureError("what serves is no program: there is no graph to export")
        return source if original.model.once else ask(source)
    if original.batch is None:
        raise CaptureError(
            "nothing was compressed, and the original was given as a module: load the folder without model= to export it"
        )
    try:
        return ask(capture(original))
    except CaptureError as error:
        raise CaptureError(
            f"the model cannot be captured, so there is no graph to export: {error}"
        ) from error


def is_rounded(program: Program) -> bool:
    """Whether the graph computes with numbers in fewer bits than float32, where the last bit of one may move an answer by a step."""
    assert isinstance(program.model, fx.GraphModule)
    return any(
        is_reference(node)
        or (
            isinstance(held := node.meta.get("val"), Tensor) and held.dtype in (torch.bfloat16, torch.float16)
        )
        for node in program.model.graph.nodes
    )


def inputs_of(program: Program) -> tuple[Port, ...]:
    """The inputs in call order, by the names of features."""
    found = []
    for feature in program.layout.features:
        sizes: list[int | str] = list(feature.shape)
        if feature.growing is not None:
            # What cuts values, and the values themselves, grow by numbers of their own.
            sizes[feature.growing] = (
                ROWS if feature.role in ("rows", "starts") else f"{feature.name} {feature.role}"
            )
            if feature.role == "lengths" and feature.keys == 1:
                sizes[feature.growing] = ROWS
        found.append(Port(feature.name, feature.dtype, tuple(sizes), _mine(feature.request, feature.role)))
    return _apart(found, set())


def outputs_of(program: Program, layout: Layout, inputs: tuple[Port, ...]) -> tuple[Port, ...]:
    """The outputs in flat order, named by where they stand in the model's answer: `output`, `output[0]`, `output.ctr`."""
    assert isinstance(program.model, fx.GraphModule)
    names = dict(_leaves(layout.outputs, "output"))
    results = program.model.graph.output_node().args[0]
    assert isinstance(results, (tuple, list))
    found = []
    for index, node in enumerate(results):
        assert isinstance(node, fx.Node)
        value = node.meta["val"]
        axis = layout.output_axes[index] if index < len(layout.output_axes) else None
        sizes: list[int | str] = [
            ROWS if k == axis else int(n) if isinstance(n, int) else f"output {index} size {k}"
            for k, n in enumerate(value.shape)
        ]
        found.append(Port(names.get(index, f"output[{index}]"), value.dtype, tuple(sizes)))
    return _apart(found, {port.name for port in inputs})


def _mine(request: bool | tuple[int, ...], role: str) -> bool | tuple[int, ...]:
    """What of a feature is the request's in the graph: jagged ones are computed per row."""
    return request if role in ("rows", "fixed") else False


def _apart(ports: list[Port], taken: set[str]) -> tuple[Port, ...]:
    """The same with names that nothing else has."""
    made = []
    for port in ports:
        name = port.name
        while name in taken or not name:
            name += "_"
        taken.add(name)
        made.append(Port(name, port.dtype, port.shape, port.request))
    return tuple(made)


def _leaves(tree: Tree, name: str) -> Iterator[tuple[int, str]]:
    if isinstance(tree, Leaf):
        yield tree.index, name
    elif isinstance(tree, Branch):
        for key, child in zip(tree.keys, tree.children, strict=True):
            listed = tree.kind in ("tuple", "list")
            yield from _leaves(child, f"{name}[{key}]" if listed else f"{name}.{key}")
