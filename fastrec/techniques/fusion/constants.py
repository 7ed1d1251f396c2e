"""What depends on no input is computed once.

    f(c_1, ..., c_k) = c      c_i constants, f deterministic; c a new constant

When it does not apply: to a graph that writes in place; where the result depends on the number of rows; where it
would take more memory than 1 MiB and than what it is made from (a table expanded by a broadcast).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant
from ..base import Change
from .purity import is_pure, writes

__all__ = ["fold_constants"]

_SMALL = 1 << 20


def fold_constants(gm: fx.GraphModule) -> list[Change]:
    """Replaces calls on constants by their results; edits `gm` in place. Adds at most what it replaces, or 1 MiB each."""
    if writes(gm):
        return []
    changes: list[Change] = []
    # Results of several tensors, read by the calls that pick one.
    several: dict[fx.Node, Any] = {}
    for node in list(gm.graph.nodes):
        fakes = node.meta.get("val")
        fakes = fakes if isinstance(fakes, (list, tuple)) else [fakes]
        if (
            not is_pure(node)
            or not all(map(_fixed, fakes))
            or any(user.op == "output" for user in node.users)
        ):
            continue
        held = {source: several.get(source, constant(gm, source)) for source in node.all_input_nodes}
        parts = [part for value in held.values() for part in (value if isinstance(value, tuple) else [value])]
        known = [part for part in parts if part is not None]
        # Bytes are asked of what is constant alone: of a tensor of known size, strides may not be known.
        if len(known) != len(parts):
            continue
        made = sum(fake.nbytes for fake in fakes)
        if made > max([_SMALL, *(tensor.nbytes for tensor in known)]):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), held.__getitem__)
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        if not isinstance(result, Tensor):
            several[node] = tuple(result)
            continue
        shared = any(result.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in known)
        # A broadcast view is small in memory and large to everyone who copies it.
        folded = add_constant(
            gm, node.name, result if shared and 0 not in result.stride() else result.contiguous()
        )
        node.replace_all_uses_with(folded)
        gm.graph.erase_node(node)
        changes.append(Change("fold constants", node.name, "computed once", 0 if shared else made))
    return changes


def _fixed(fake: Any) -> bool:
    """Whether a fake value is a tensor of known size."""
    if not isinstance(fake, Tensor) or fake.layout is not torch.strided:
        return False
    return not any(isinstance(size, torch.SymInt) for size in fake.shape)
