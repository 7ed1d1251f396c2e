"""Whether two models are called alike: the same features, arguments and answer, whatever the number of rows."""

from __future__ import annotations

from dataclasses import replace

from .inputs import Branch, Feature, Fixed, Layout, Tree

__all__ = ["differing_calls"]


def differing_calls(one: Layout, other: Layout) -> str:
    """How the calls of two models differ, in words; nothing where one may stand for the other."""
    names, others = ([feature.name for feature in layout.features] for layout in (one, other))
    if names != others:
        return f"it takes {', '.join(others)}, expected {', '.join(names)}"
    for feature, now in zip(one.features, other.features, strict=True):
        if _free(feature) != _free(now):
            return f"feature {feature.name!r} is {_said(now)}, expected {_said(feature)}"
    if one.parameters != other.parameters or one.positional != other.positional:
        return f"its arguments are {', '.join(other.parameters)}, expected {', '.join(one.parameters)}, given alike"
    for name, tree, found in zip(one.parameters, one.trees, other.trees, strict=True):
        if _plain(tree) != _plain(found):
            return f"argument {name!r} is {found!r:.80}, expected {tree!r:.80}"
    if _plain(one.outputs) != _plain(other.outputs):
        return f"its answer is {other.outputs!r:.80}, expected {one.outputs!r:.80}"
    if one.output_axes != other.output_axes:
        return f"the rows of its answer are counted by dimensions {other.output_axes}, expected {one.output_axes}"
    if one.independent and not other.independent:
        return "the answer for a row depends on the other rows of its batch, and did not before"
    return ""


def _free(feature: Feature) -> Feature:
    """The feature at no particular number of rows."""
    shape = tuple(0 if axis == feature.growing else size for axis, size in enumerate(feature.shape))
    return replace(feature, shape=shape)


def _said(feature: Feature) -> str:
    sizes = ("any" if axis == feature.growing else str(size) for axis, size in enumerate(feature.shape))
    return f"{feature.dtype} ({', '.join(sizes)}), {feature.role}"


def _plain(tree: Tree) -> Tree:
    """The structure without objects, of which an artifact keeps the name alone."""
    if isinstance(tree, Fixed) and tree.opaque:
        return Fixed(None, opaque=True)
    if isinstance(tree, Branch):
        return replace(tree, children=tuple(_plain(child) for child in tree.children))
    return tree
