"""What depends on no input is computed once.

    f(c_1, ..., c_k) = c      c_i constants, f deterministic; c a new constant

When it does not apply: to a graph that writes in place; where the result depends on the number of rows; where it
would take more memory than 1 MiB and than what it is made from (a table expanded by a broadcast).
"""

from __future__ import annotations

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
    for node in list(gm.graph.nodes):
        fake = node.meta.get("val")
        if not is_pure(node) or not isinstance(fake, Tensor):
            continue
        if any(isinstance(dim, torch.SymInt) for dim in fake.shape) or fake.layout is not torch.strided:
            continue
        sources = [constant(gm, source) for source in node.all_input_nodes]
        known = [source for source in sources if source is not None]
        if len(known) != len(sources) or any(user.op == "output" for user in node.users):
            continue
        made = fake.numel() * fake.element_size()
        if made > max([_SMALL, *(source.numel() * source.element_size() for source in known)]):
            continue
        held = dict(zip(node.all_input_nodes, known, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), held.__getitem__)
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        shared = any(result.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in known)
        # A broadcast view is small in memory and large to everyone who copies it.
        folded = add_constant(
            gm, node.name, result if shared and 0 not in result.stride() else result.contiguous()
        )
        node.replace_all_uses_with(folded)
        gm.graph.erase_node(node)
        changes.append(Change("fold constants", node.name, "computed once", 0 if shared else made))
    return changes
