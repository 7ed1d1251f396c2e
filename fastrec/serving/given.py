"""The features of one side of a call, the request's or the candidates', as people give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import Feature
from ..trees import Branch, Leaf, Tree, child_name, describe, in_words

__all__ = ["cast", "read_side"]


def read_side(given: Any, features: Sequence[Feature], wanted: Sequence[int], side: str) -> dict[int, Tensor]:
    """The tensors of the features numbered `wanted`.

    `given` is a mapping of names (a feature's own, or the end of it), nested as the model's batches are; a tuple in
    the order of the features; or the one tensor there is. Raises `InputError` naming what is missing, unknown or
    the other side's, or of another type.
    """
    if type(given) is dict and len(given) == len(wanted):
        # As it nearly always is: each by its own name.
        named = {i: value for i in wanted if isinstance(value := given.get(features[i].name), Tensor)}
        if len(named) == len(wanted):
            return {i: cast(features[i], tensor) for i, tensor in named.items()}
    names = ", ".join(repr(features[i].name) for i in wanted)
    found: list[tuple[str, Tensor]] = []
    tree = describe(given, "", found)
    if isinstance(tree, Leaf) or (isinstance(tree, Branch) and tree.kind in ("tuple", "list")):
        if len(found) != len(wanted):
            raise InputError(
                f"the {side} has {len(wanted)} features ({names}), got {len(found)} tensors: it was {in_words(tree):.200}."
            )
        return {i: cast(features[i], tensor) for i, (_, tensor) in zip(wanted, found, strict=True)}
    if not isinstance(tree, Branch):
        raise InputError(f"the {side} is a mapping or a tuple of {names}, got {type(given).__name__}.")
    taken: dict[int, Tensor] = {}
    for name, tensor in found:
        index = _find(name.removeprefix("."), features, side)
        if index not in wanted:
            raise InputError(
                f"feature {features[index].name!r} is not of the {side}, which has {names}.",
                feature=features[index].name,
            )
        if index in taken:
            raise InputError(
                f"feature {features[index].name!r} is given twice.", feature=features[index].name
            )
        taken[index] = cast(features[index], tensor)
    for index in wanted:
        if index in taken:
            continue
        name = features[index].name
        for other, said in _no_tensors(tree, ""):
            if name == other or name.endswith(f".{other}"):
                raise InputError(
                    f"feature {name!r} of the {side}: got {said}, expected a tensor.", feature=name
                )
        raise InputError(
            f"missing feature {name!r} of the {side}: got "
            f"{', '.join(one.removeprefix('.') for one, _ in found) or 'nothing'}, expected {names}.",
            feature=name,
        )
    return taken


def _no_tensors(tree: Tree, name: str) -> Iterator[tuple[str, str]]:
    """What is no tensor, by its name, in words."""
    if isinstance(tree, Leaf):
        return
    yield name.removeprefix("."), f"{in_words(tree):.80}"
    if isinstance(tree, Branch):
        for key, child in zip(tree.keys, tree.children, strict=True):
            yield from _no_tensors(child, child_name(name, tree.kind, key))


def _find(name: str, features: Sequence[Feature], side: str) -> int:
    names = [feature.name for feature in features]
    if name in names:
        return names.index(name)
    ends = [i for i, full in enumerate(names) if full.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    which = f"may be any of {', '.join(names[i] for i in ends)}" if ends else f"is none of {', '.join(names)}"
    raise InputError(f"the {side}: {name!r:.80} {which}.", feature=name)


def cast(feature: Feature, tensor: Tensor) -> Tensor:
    """The tensor without gradient; narrower integers are widened, as lookups would. Raises `InputError` for what no session reads."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InputError(
            f"feature {feature.name!r} is {tensor.layout} on {tensor.device}, expected a dense tensor on the cpu.",
            feature=feature.name,
        )
    if tensor.dtype is feature.dtype:
        return tensor.detach() if tensor.requires_grad else tensor
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if (
        whole
        and feature.dtype in (torch.int64, torch.int32)
        and tensor.element_size() <= feature.dtype.itemsize
    ):
        return tensor.detach().to(feature.dtype)
    raise InputError(
        f"feature {feature.name!r} has dtype {tensor.dtype}, expected {feature.dtype}. Convert it with "
        f".to({feature.dtype}).",
        feature=feature.name,
    )
