"""Whether a model is called as another one was: the same features, arguments and answer, whatever the number of rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from .errors import InputError
from .inputs import Feature, Layout
from .rows import Run, count_rows
from .trees import Branch, Fixed, Tree, in_words

__all__ = ["answer_types", "as_before", "differing", "other_arguments"]


def as_before(
    before: Layout,
    layout: Layout,
    run: Run,  # noqa: ARG001 - in the place of `find_rows`, which asks for them
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> Layout:
    """The layout of a model with what is known of the rows of another, whose calls are alike: nothing is looked for anew.

    Raises `InputError` where they are not.
    """
    if differs := differing(before, layout):
        raise InputError(differs)
    features = tuple(
        replace(known, shape=feature.shape)
        for known, feature in zip(before.features, layout.features, strict=True)
    )
    rows = count_rows(features, tensors) if before.rows is not None else None
    for axis, output in zip(before.output_axes, outputs, strict=True):
        if axis is not None and (axis >= output.ndim or output.shape[axis] != rows):
            raise InputError(
                f"it answers {tuple(output.shape)} to {rows} rows, expected {rows} in dimension {axis}"
            )
    return replace(
        layout,
        features=features,
        rows=rows,
        output_axes=before.output_axes,
        independent=before.independent,
    )


def differing(one: Layout, other: Layout) -> str:
    """How the calls of two models differ, in words, or nothing."""
    if one.parameters != other.parameters:
        return f"its arguments are {', '.join(other.parameters)}, expected {', '.join(one.parameters)}"
    names, others = ([feature.name for feature in layout.features] for layout in (one, other))
    if names != others:
        return f"it takes {', '.join(others)}, expected {', '.join(names)}"
    for feature, now in zip(one.features, other.features, strict=True):
        axis = feature.growing
        if feature.dtype is not now.dtype or _free(feature, axis) != _free(now, axis):
            return f"feature {feature.name!r} is {_said(now, axis)}, expected {_said(feature, axis)}"
    if one.positional != other.positional:
        return f"{other.positional} of its arguments are given by position, expected {one.positional}"
    for name, tree, found in zip(one.parameters, one.trees, other.trees, strict=True):
        if _plain(tree) != _plain(found):
            return f"argument {name!r} is {in_words(found):.200}, expected {in_words(tree):.200}"
    if _plain(one.outputs) != _plain(other.outputs):
        return f"its answer is {in_words(other.outputs):.200}, expected {in_words(one.outputs):.200}"
    return ""


def other_arguments(
    before: Layout, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Which arguments a function has in place of those of a call that it does not take, in words, or nothing."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in callables have none
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(signature.parameters) or "none"
        return f"its arguments are {names}, expected {', '.join(before.parameters)} ({error})"
    return ""


def answer_types(gm: fx.GraphModule) -> tuple[str, ...]:
    """The dtypes of what a graph gives."""
    outputs = gm.graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    return tuple(str(node.meta["val"].dtype) for node in outputs if isinstance(node, fx.Node))


def _free(feature: Feature, growing: int | None) -> tuple[int | None, ...]:
    """The sizes, None for that which counts rows."""
    return tuple(None if axis == growing else size for axis, size in enumerate(feature.shape))


def _said(feature: Feature, growing: int | None) -> str:
    sizes = ("any" if size is None else str(size) for size in _free(feature, growing))
    return f"{feature.dtype} ({', '.join(sizes)})"


def _plain(tree: Tree) -> Tree:
    """The structure without objects, of which an artifact keeps the name alone, and without what nobody reads."""
    if isinstance(tree, Fixed) and tree.opaque:
        return Fixed(None, opaque=True)
    if isinstance(tree, Branch):
        return replace(tree, children=tuple(_plain(child) for child in tree.children), lacking=None)
    return tree
