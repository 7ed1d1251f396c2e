"""Blocks of the generated models: each takes the fields and gives one vector for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention import AttentionCore, UnitCore
from .core import Core, Given, Plan, joined, picked
from .describe import (
    Attention,
    Block,
    Cross,
    Deep,
    Dots,
    Excited,
    Experts,
    FieldWeighted,
    Gate,
    Pairs,
    Towers,
    Unit,
    Wide,
)
from .layers import Layers, compared, triangle

__all__ = ["Whole"]


class DeepCore(Core):
    """See `Deep`."""

    def __init__(self, block: Deep, plan: Plan) -> None:
        super().__init__(block, plan)
        self.width = self.total(self.parts())

    def forward(self, given: Given) -> Tensor:
        return joined(given, self.parts())


class WideCore(Core):
    """See `Wide`."""

    width = 1

    def __init__(self, block: Wide, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, len(plan.tables))
        sizes = [plan.tables[place] for place in self.places]
        if block.form == "bag":
            self.bag = nn.EmbeddingBag(sum(sizes), 1, mode="sum")
            self.offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        else:
            self.tables = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, given: Given) -> Tensor:
        ids = [given.ids[place] for place in self.places]
        if self.block.form == "bag":
            x = torch.stack(ids, dim=1)
            return self.bag(x + x.new_tensor(self.offsets)) + self.bias
        rows = [table(x) for table, x in zip(self.tables, ids, strict=True)]
        if self.block.form == "cat":
            return torch.cat(rows, dim=1).sum(1, keepdim=True) + self.bias
        if self.block.form == "stack":
            return torch.stack(rows, dim=1).sum(dim=1) + self.bias
        return sum(rows) + self.bias


class TowersCore(Core):
    """See `Towers`."""

    def __init__(self, block: Towers, plan: Plan) -> None:
        super().__init__(block, plan)
        left, right = self.sides()
        self.left = Layers(self.total(left), block.layers, last=3)
        self.right = Layers(self.total(right), block.layers, last=3)
        self.width = 7 if block.form == "both" else 1

    def forward(self, given: Given) -> Tensor:
        left, right = self.sides()
        u, v = self.left(joined(given, left)), self.right(joined(given, right))
        score = compared(self.block.form, u, v)
        return torch.cat([u, score, v], 1) if self.block.form == "both" else score


class GateCore(Core):
    """See `Gate`."""

    def __init__(self, block: Gate, plan: Plan) -> None:
        super().__init__(block, plan)
        left, right = self.sides()
        self.left = nn.Linear(self.total(left), block.width)
        self.right = nn.Linear(self.total(right), block.width, bias=False)
        self.gate = nn.Linear(self.total(left) + self.total(right), block.width)
        self.width = block.width

    def forward(self, given: Given) -> Tensor:
        left, right = (joined(given, places) for places in self.sides())
        u, v = self.left(left), self.right(right)
        if self.block.form == "product":
            return u * v
        if self.block.form == "tanh":
            return torch.tanh(u) * v + v
        if self.block.form == "mix":
            g = self.gate(torch.cat([left, right], 1)).sigmoid()
            return g * u + (1 - g) * v
        return torch.sigmoid(u) * v


class PairsCore(Core):
    """See `Pairs`."""

    def __init__(self, block: Pairs, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, plan.vectors, 2)
        self.width = 1 if block.total or block.form == "gram" else plan.width

    def forward(self, given: Given) -> Tensor:
        rows = [given.vectors[place] for place in self.places]
        form = self.block.form
        if form == "gram":
            block = torch.stack(rows, 1)
            products = torch.bmm(block, block.transpose(1, 2))
            return torch.triu(products, diagonal=1).sum((1, 2)).unsqueeze(1)
        if form in ("loop", "index"):
            if form == "loop":
                total = torch.zeros_like(rows[0])
                for i, j in triangle(len(rows)):
                    total = total + rows[i] * rows[j]
            else:
                first, second = torch.tensor(triangle(len(rows))).unbind(1)
                block = torch.stack(rows, 1)
                total = (block[:, first] * block[:, second]).sum(1)
        elif form == "stack":
            block = torch.stack(rows, dim=1)
            total = 0.5 * (torch.sum(block, dim=1) ** 2 - torch.sum(block**2, dim=1))
        elif form == "pow":
            block = torch.cat([row.unsqueeze(1) for row in rows], dim=1)
            total = 0.5 * (block.sum(1).pow(2) - block.pow(2).sum(1))
        else:
            added = sum(rows)
            total = (added * added - sum(row * row for row in rows)) / 2
        return total.sum(dim=1, keepdim=True) if self.block.total else total


class FieldWeightedCore(Core):
    """See `FieldWeighted`."""

    width = 1

    def __init__(self, block: FieldWeighted, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, plan.vectors, 2)
        self.weights = nn.Parameter(torch.randn(len(self.places), len(self.places)))

    def forward(self, given: Given) -> Tensor:
        rows = [given.vectors[place] for place in self.places]
        pairs = triangle(len(rows))
        if self.block.form == "loop":
            return sum((rows[i] * rows[j]).sum(1, keepdim=True) * self.weights[i, j] for i, j in pairs)
        block = torch.stack(rows, dim=1)
        if self.block.form == "gram":
            products = torch.matmul(block, block.transpose(1, 2))
            return (products * self.weights.triu(1)).sum(dim=(1, 2)).unsqueeze(1)
        if self.block.form == "einsum":
            return torch.einsum("nid,njd,ij->n", block, block, self.weights.triu(1)).unsqueeze(1)
        first, second = torch.tensor(pairs).t()
        products = (block[:, first] * block[:, second]).sum(-1)
        return (products * self.weights[first, second]).sum(1, keepdim=True)


class DotsCore(Core):
    """See `Dots`."""

    chosen: Tensor

    def __init__(self, block: Dots, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, plan.vectors, 2)
        self.numbers = block.numbers and plan.numbers > 0
        count = len(self.places) + self.numbers
        if self.numbers:
            self.bottom = nn.Sequential(nn.Linear(plan.numbers, plan.width), nn.ReLU())
        self.register_buffer("chosen", torch.ones(count, count).triu(1).nonzero())
        pairs = count * count if block.form == "all" else count * (count - 1) // 2
        self.width = pairs + self.numbers * plan.width

    def forward(self, given: Given) -> Tensor:
        rows = [given.vectors[place] for place in self.places]
        if self.numbers:
            rows.insert(0, self.bottom(torch.cat(given.numbers, 1)))
        found = self.products(rows)
        return torch.cat([rows[0], found], dim=1) if self.numbers else found

    def products(self, rows: list[Tensor]) -> Tensor:
        count, form = len(rows), self.block.form
        if form == "loop":
            return torch.cat([(rows[i] * rows[j]).sum(-1, keepdim=True) for i, j in triangle(count)], -1)
        block = (
            torch.cat(rows, dim=1).view(rows[0].shape[0], count, -1)
            if form == "tril"
            else torch.stack(rows, 1)
        )
        products = torch.bmm(block, block.transpose(1, 2))
        if form == "all":
            return products.flatten(1)
        if form == "flat":
            return products.flatten(1)[:, self.chosen[:, 0] * count + self.chosen[:, 1]]
        if form == "buffer":
            first, second = self.chosen.unbind(1)
        elif form == "lists":
            first = torch.tensor([i for i in range(count) for _ in range(i)])
            second = torch.tensor([j for i in range(count) for j in range(i)])
        elif form == "tril":
            first, second = torch.tril_indices(count, count, offset=-1)
        else:
            first, second = torch.triu_indices(count, count, offset=1)
        return products[:, first, second]


class CrossCore(Core):
    """See `Cross`."""

    def __init__(self, block: Cross, plan: Plan) -> None:
        super().__init__(block, plan)
        self.width = width = self.total(self.parts())
        if block.rank > 0:
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(width, block.rank, bias=False), nn.Linear(block.rank, width))
                for _ in range(block.layers)
            )
        elif block.rank == 0:
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(block.layers))
        else:
            self.layers = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(block.layers))
            self.biases = nn.ParameterList(torch.zeros(width) for _ in range(block.layers))

    def forward(self, given: Given) -> Tensor:
        x0 = joined(given, self.parts())
        x = x0
        for place, layer in enumerate(self.layers):
            if self.block.rank < 0:
                x = x0 * layer(x) + self.biases[place] + x
            elif self.block.form == "addcmul":
                x = torch.addcmul(x, x0, layer(x))
            elif self.block.form == "before":
                x = x + layer(x) * x0
            else:
                x = x0 * layer(x) + x
        return x


class ExcitedCore(Core):
    """See `Excited`."""

    def __init__(self, block: Excited, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, plan.vectors, 2)
        count = len(self.places)
        self.gates = nn.Sequential(nn.Linear(count, 2), nn.ReLU(), nn.Linear(2, count), nn.Sigmoid())
        self.width = count * plan.width

    def forward(self, given: Given) -> Tensor:
        block = torch.stack([given.vectors[place] for place in self.places], dim=1)
        squeezed = block.mean(-1) if self.block.squeeze == "mean" else block.max(dim=-1)[0]
        scaled = block * self.gates(squeezed).unsqueeze(-1)
        return (scaled if self.block.form == "scale" else block + scaled).flatten(1)


class ExpertsCore(Core):
    """See `Experts`."""

    def __init__(self, block: Experts, plan: Plan) -> None:
        super().__init__(block, plan)
        width = self.total(self.parts())
        self.experts = nn.ModuleList(Layers(width, block.layers) for _ in range(block.experts))
        self.gate = nn.Linear(width, block.experts)
        self.width = block.layers.widths[-1]

    def forward(self, given: Given) -> Tensor:
        x = joined(given, self.parts())
        mixed = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (torch.softmax(self.gate(x), dim=-1).unsqueeze(-1) * mixed).sum(dim=1)


CORES: dict[type[Block], Callable[[Any, Plan], Core]] = {
    Deep: DeepCore, Wide: WideCore, Towers: TowersCore, Gate: GateCore, Pairs: PairsCore, FieldWeighted: FieldWeightedCore,
    Dots: DotsCore, Cross: CrossCore, Excited: ExcitedCore, Experts: ExpertsCore, Unit: UnitCore, Attention: AttentionCore,
}  # fmt: skip


class Whole(nn.Module):
    """A block with the layers after it."""

    def __init__(self, block: Block, plan: Plan) -> None:
        super().__init__()
        self.block = block
        self.core = CORES[type(block)](block, plan)
        self.width = self.core.width
        if block.then is not None:
            self.then = Layers(self.width + block.beside * sum(plan.widths), block.then)
            self.width = self.then.width

    def forward(self, given: Given) -> Tensor:
        y: Tensor = self.core(given)
        if self.block.then is None:
            return y
        return self.then(torch.cat([y, *given.parts], dim=1) if self.block.beside else y)
