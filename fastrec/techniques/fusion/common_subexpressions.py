"""What is computed twice is computed once, and tables that are equal are one.

    y_1 = f(x), y_2 = f(x)   ->   y_1 = f(x), y_2 = y_1
    T_1 = T_2 bit for bit    ->   every reader of T_2 reads T_1

When it does not apply: to a graph that writes in place; to calls that draw random numbers; to results that are
themselves outputs, which a caller may write into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import constant
from ..base import Change
from .id_columns import identity
from .purity import is_pure, writes

__all__ = ["merge_common"]


def merge_common(gm: fx.GraphModule) -> list[Change]:
    """Merges equal constants and equal calls; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    return [*_merge_constants(gm), *_merge_calls(gm)]


def _merge_constants(gm: fx.GraphModule) -> list[Change]:
    changes: list[Change] = []
    kept: dict[Any, list[tuple[fx.Node, Tensor]]] = {}
    moved: dict[str, tuple[str, int, int, int, int]] = dict(gm.meta.get("moved", {}))
    for node in list(gm.graph.nodes):
        tensor = constant(gm, node)
        if tensor is None or tensor.layout is not torch.strided or tensor.numel() == 0:
            continue
        # Cheap to tell most tensors apart by; equal ones are then compared in full.
        glance = (
            tensor.flatten()[:8] if tensor.is_contiguous() else tensor[(slice(0, 1),) * tensor.ndim].flatten()
        )
        key = (tuple(tensor.shape), tensor.dtype, tuple(glance.tolist()))
        for other, held in kept.setdefault(key, []):
            if other.target == node.target or identity(held) == identity(tensor) or torch.equal(held, tensor):
                if identity(held) != identity(tensor):
                    changes.append(Change("merge common", str(node.target), f"equal to {other.target}"))
                    if tensor.ndim == 2:
                        old, new = str(node.target), str(other.target)
                        moved[old] = (new, 0, tensor.shape[0], 0, tensor.shape[1])
                node.replace_all_uses_with(other)
                gm.graph.erase_node(node)
                break
        else:
            kept[key].append((node, tensor))
    if changes:
        gm.meta["moved"] = moved
    return changes


def _merge_calls(gm: fx.GraphModule) -> list[Change]:
    changes: list[Change] = []
    seen: dict[Any, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if not is_pure(node):
            continue
        key = (node.target, _frozen(node.args), _frozen(dict(node.kwargs)))
        first = seen.setdefault(key, node)
        if first is not node and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(first)
            gm.graph.erase_node(node)
            changes.append(Change("merge common", node.name, f"the same as {first.name}"))
    return changes


def _frozen(value: Any) -> Any:
    """Arguments as something that compares and hashes; 1, 1.0 and True are different."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((name, _frozen(item)) for name, item in value.items()))
    return value if isinstance(value, fx.Node) else (type(value).__name__, repr(value))
