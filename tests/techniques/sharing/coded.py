"""What tests of tables by codes share: graphs of one table and of many, and what a graph says that a table holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, Technique
from tests.techniques.rows import Rows

__all__ = ["ROWS", "Rows", "captured", "graph_of", "held", "traffic", "trained"]

ROWS = 300


def trained(width: int, *, rows: int = ROWS, seed: int = 0) -> Tensor:
    """A table as training leaves it: some directions that rows share, rows of many sizes, and one of padding."""
    rng = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 4, generator=rng) @ torch.randn(4, width, generator=rng)
    table = table + 0.3 * torch.randn(rows, width, generator=rng)
    table *= torch.rand(rows, 1, generator=rng) + 0.1
    table[0] = 0
    return table


def traffic(columns: int, *, batches: int = 5, size: int = 12, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Ids of which some come much more often."""
    rng = torch.Generator().manual_seed(seed)
    return [((ROWS * torch.rand(size, columns, generator=rng) ** 4).long(),) for _ in range(batches)]


def captured(model: nn.Module, seen: Sequence[tuple[Tensor, ...]], *, fuse: bool = False) -> Program:
    program = capture(Program.read(model.eval(), seen[0]))
    if fuse:
        program = program.with_model(Fuse().apply(program).model)
    return replace(program, calibration=tuple(seen))


def graph_of(program: Program, technique: Technique) -> tuple[fx.GraphModule, Applied]:
    """The graph with every table taken; the one it came from is as it was."""
    assert isinstance(program.model, fx.GraphModule)
    code, tensors = program.model.code, [tensor.clone() for tensor in program.model.parameters()]
    made = technique.apply(program)
    assert program.model.code == code
    assert all(map(torch.equal, program.model.parameters(), tensors))
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made


def held(graph: fx.GraphModule, name: str, *, sums: bool) -> Tensor:
    """The table that its codes in a graph stand for, by the definition."""
    tensors: dict[str, Any] = dict(graph.named_buffers())
    stem = name.replace(".", "_")
    codes, book = tensors[f"{stem}_codes"].long(), tensors[f"{stem}_codebook"]
    count = len(book) // codes.shape[1]
    parts = [book[count * k + codes[:, k]] for k in range(codes.shape[1])]
    return torch.stack(parts).sum(0) if sums else torch.cat(parts, 1)
