"""Tables that a rule moved: the original reads its part of the new one, so that they are in memory once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .program import Program

__all__ = ["release_moved"]


def release_moved(original: Program, gm: fx.GraphModule) -> int:
    """Let the original read, in place of each table that a rule moved, its part of the new one.

    `original.model` is a draft, and is changed. A model that then answers differently on its example (a kernel
    may want whole rows) keeps its own tables. Returns how many tables were released.
    """
    moved: Mapping[str, tuple[str, int, int, int, int]] = gm.meta.get("moved", {})
    views: dict[int, Tensor] = {}
    for old, (new, row, rows, column, columns) in moved.items():
        place, _, name = old.removeprefix("model.").rpartition(".")
        try:
            held = getattr(original.model.get_submodule(place), name)
            table = operator.attrgetter(new)(gm)
        except AttributeError:
            continue
        views[id(held)] = table.detach()[row : row + rows, column : column + columns]
    if not views:
        return 0
    flat = original.flat(original.batch)
    before = original.answers(flat)
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    for module in original.model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if id(tensor) in views:
                    view = views[id(tensor)]
                    made = nn.Parameter(view, requires_grad=False) if tensors is module._parameters else view
                    swapped.append((tensors, name, tensor))
                    tensors[name] = made  # type: ignore[assignment]  # either kind of dict takes it
    try:
        same = all(map(torch.equal, before, original.answers(flat)))
    except RuntimeError:
        same = False
    if not same:
        for tensors, name, tensor in swapped:
            tensors[name] = tensor
        return 0
    return len(views)
