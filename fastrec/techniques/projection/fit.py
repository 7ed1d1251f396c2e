"""The basis of each group of tables: what calibration looks up, and what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from ...errors import TechniqueError
from ...graph import constant, emit, value
from ..quantization.calibration import inputs_of
from ..traffic import ids_seen, row_counts
from .bases import Basis, Moments, basis_of_maps, basis_of_products, row_moments, table_moments
from .groups import Group, Leaf

__all__ = ["STEP", "fitted"]

aten = torch.ops.aten

STEP = 4
"""Widths are multiples of this, of wide tables of twice as much: kernels add up so many numbers at once."""
_WIDE = 64
_TECHNIQUE = "project_pca"


def fitted(
    gm: fx.GraphModule,
    groups: Mapping[int, Group],
    batches: Sequence[Sequence[Tensor]],
    energy: float,
    rank: int | None,
) -> dict[int, Basis]:
    """The basis of each group on these batches, of this share of its energy, or of `rank` columns.

    Raises `TechniqueError` for ids that a table does not have, and for values beside its rows that are not finite.
    """
    if not groups:
        return {}
    seen = ids_seen(gm, [table for group in groups.values() for table in group.tables], batches)
    counts = {
        root: {table.name: row_counts(table, seen, _TECHNIQUE) for table in group.tables}
        for root, group in groups.items()
    }
    turned = {leaf: _rows_of(gm, leaf) for group in groups.values() for leaf in group.entries}
    rows = inputs_of(gm, turned.values(), batches) if turned else {}
    entered = {leaf: rows[node] for leaf, node in turned.items()}
    found = {}
    for root, group in groups.items():
        moments = _moments(group, counts[root], entered)
        if not bool(moments.second.isfinite().all()):
            raise TechniqueError(
                f"calibration gave values that are not finite beside the rows of {group.tables[0].name}: give batches "
                "without NaN and infinities",
                technique=_TECHNIQUE,
                site=group.tables[0].name,
            )
        step = 2 * STEP if group.width >= _WIDE else STEP
        if group.contracted:
            found[root] = basis_of_products(moments, energy, rank, step)
        else:
            maps = _maps(gm, group)
            found[root] = basis_of_maps(moments, maps, energy, rank, step, centred=not group.bent)
    return found


def _rows_of(gm: fx.GraphModule, leaf: Leaf) -> fx.Node:
    """The value that enters with its columns last; what it takes to see that is swept with all that nothing reads."""
    if leaf.axis == value(leaf.node).ndim - 1 or leaf.user is None:
        return leaf.node
    with gm.graph.inserting_before(leaf.user):
        return emit(gm, aten.transpose.int, (leaf.node, leaf.axis, -1))


def _moments(group: Group, counts: Mapping[str, Tensor], entered: Mapping[Leaf, Tensor]) -> Moments:
    """Those of all rows of a group, looked up or entered; an entry counts as a lookup does."""
    weights = {table.name: float(counts[table.name].sum()) for table in group.tables}
    each = sum(weights.values()) / group.lookups
    total = sum(weights.values()) + each * len(group.entries)
    if not total:
        weights, each = dict.fromkeys(weights, 1.0), 1.0
        total = len(weights) + len(group.entries)
    found = Moments(
        torch.zeros(group.width, dtype=torch.float64),
        torch.zeros(group.width, group.width, dtype=torch.float64),
    )
    for table in group.tables:
        found += table_moments(table.tensor, counts[table.name]) * (weights[table.name] / total)
    for leaf in group.entries:
        found += row_moments(entered[leaf]) * (each / total)
    return found


def _maps(gm: fx.GraphModule, group: Group) -> Tensor:
    """R (d, d) or less with R^T R = W^T W over all columns of maps that read rows of the group."""
    blocks = []
    for node, start in group.maps:
        weight = constant(gm, node.args[1])
        assert weight is not None
        blocks.append(weight[:, start : start + group.width].double())
    held: Tensor = torch.linalg.qr(torch.cat(blocks), "r").R
    return held
