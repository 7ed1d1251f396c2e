"""What the calibration batches look up: which ids reach which table, and how often each row is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import TechniqueError
from ..program import Program
from .reads import Table

__all__ = ["batches_of", "ids_seen", "row_counts", "values_seen"]


def batches_of(program: Program) -> tuple[Sequence[Tensor], ...]:
    """The calibration batches of a captured program; its example where it has none."""
    return program.calibration or (program.batch,)


def ids_seen(
    gm: fx.GraphModule, tables: Iterable[Table], batches: Sequence[Sequence[Tensor]]
) -> dict[fx.Node, Tensor]:
    """The ids (n,) that reach each lookup of these tables on the batches. Cost: what ids alone take of a run."""
    nodes = list(dict.fromkeys(read.ids for table in tables for read in table.reads))
    found = values_seen(gm, nodes, batches)
    return {node: torch.cat([ids.reshape(-1).long() for ids in found[node]]) for node in nodes}


def values_seen(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], batches: Sequence[Sequence[Tensor]]
) -> dict[fx.Node, list[Tensor]]:
    """What these nodes give on each of the batches. Cost: what they alone take of a run."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    graph.graph_copy(gm.graph, copies)
    graph.output(tuple(copies[node] for node in nodes))
    graph.eliminate_dead_code()
    alone = fx.GraphModule(gm, graph)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        found = [alone(*batch) for batch in batches]
    return {node: list(each) for node, each in zip(nodes, zip(*found, strict=True), strict=True)}


def row_counts(table: Table, seen: Mapping[fx.Node, Tensor], technique: str) -> Tensor:
    """How often each row of a table was looked up (V,), of the ids that `ids_seen` gives.

    Raises `TechniqueError` at ids that the table does not have.
    """
    size = len(table.tensor)
    counts = torch.zeros(size, dtype=torch.int64)
    for read in table.reads:
        ids = seen[read.ids]
        bad = ids[(ids < 0) | (ids >= size)]
        if len(bad):
            raise TechniqueError(
                f"calibration looks up row {int(bad[0])} of {table.name}, which has {size}: give batches that the model "
                "takes",
                technique=technique,
                site=table.name,
            )
        counts += torch.bincount(ids, minlength=size)
    return counts
