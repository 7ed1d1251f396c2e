"""Blocks of the generated models: each takes the fields and gives one vector for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
)  # fmt: skip
from .layers import Layers, compared, triangle

__all__ = ["Given", "History", "Plan", "Whole"]


@dataclass(frozen=True)
class History:
    """Vectors of a history (N, T, d), and where it is no padding (N, T)."""

    rows: Tensor
    mask: Tensor


@dataclass
class Given:
    """What blocks read: `parts` holds one (N, k) for each field in order, `vectors` those of the model's width."""

    parts: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The sizes of what will be given."""

    width: int
    widths: tuple[int, ...]
    request: tuple[bool, ...]
    tables: tuple[int, ...]
    vectors: int
    numbers: int
    histories: int


class Core(nn.Module):
    """A block without the layers after it; `width` is that of its answer."""

    width: int

    def __init__(self, block: Any, plan: Plan) -> None:
        super().__init__()
        self.block, self.plan = block, plan

    def parts(self) -> list[int]:
        return picked(self.block.of, len(self.plan.widths))

    def total(self, places: Sequence[int]) -> int:
        return sum(self.plan.widths[place] for place in places)

    def sides(self) -> tuple[list[int], list[int]]:
        """Two sets of fields: the request's and the candidate's, or those at even places and the rest."""
        places = self.parts()
        left = [place for place in places if self.plan.request[place]]
        if not self.block.by_colour or not 0 < len(left) < len(places):
            left = places[::2]
        return left, [place for place in places if place not in left] or left


def picked(of: Sequence[int], count: int, fewest: int = 1) -> list[int]:
    """Places in the order drawn, without repeats; all where there are too few."""
    places = list(dict.fromkeys(place % count for place in of))
    return places if len(places) >= fewest else list(range(count))


def joined(given: Given, places: Sequence[int]) -> Tensor:
    """Fields side by side."""
    return torch.cat([given.parts[place] for place in places], dim=-1)


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


class UnitCore(Core):
    """See `Unit`."""

    def __init__(self, block: Unit, plan: Plan) -> None:
        super().__init__(block, plan)
        self.layers = Layers(plan.width * len(block.parts), block.layers, last=1)
        self.width = plan.width * (3 if block.with_query else 1)

    def forward(self, given: Given) -> Tensor:
        query = given.vectors[self.block.query % self.plan.vectors]
        history = given.histories[self.block.history % self.plan.histories]
        k, q = history.rows, self.spread(query, history.rows)
        every = {"q": q, "k": k, "q-k": q - k, "k-q": k - q, "q*k": q * k}
        scores = self.layers(torch.cat([every[part] for part in self.block.parts], dim=-1))
        there = history.mask.unsqueeze(-1)
        if self.block.mask in ("inf", "large"):
            least = float("-inf") if self.block.mask == "inf" else -1e9
            weights = scores.masked_fill(~there, least).softmax(dim=1)
            pooled = torch.bmm(weights.transpose(1, 2), k).squeeze(1)
        else:
            if self.block.mask == "zero":
                scores = torch.where(there, scores, torch.zeros_like(scores))
            elif self.block.mask == "product":
                scores = scores * there.to(scores.dtype)
            pooled = (scores * k).sum(dim=1)
        return torch.cat([query, pooled, query * pooled], 1) if self.block.with_query else pooled

    def spread(self, query: Tensor, keys: Tensor) -> Tensor:
        steps = keys.shape[1]
        if self.block.spread == "repeat":
            return query.unsqueeze(1).repeat(1, steps, 1)
        if self.block.spread == "like":
            return query.unsqueeze(1).expand_as(keys)
        if self.block.spread == "interleave":
            return torch.repeat_interleave(query.unsqueeze(1), steps, dim=1)
        return query[:, None, :].expand(-1, steps, -1)


class AttentionCore(Core):
    """See `Attention`."""

    def __init__(self, block: Attention, plan: Plan) -> None:
        super().__init__(block, plan)
        self.places = picked(block.of, plan.vectors, 2)
        self.count = block.heads if plan.width % block.heads == 0 else 1
        if block.form == "module":
            self.module = nn.MultiheadAttention(plan.width, self.count, dropout=0.1, batch_first=True)
        else:
            self.q, self.k, self.v, self.out = (nn.Linear(plan.width, plan.width) for _ in range(4))
        self.width = plan.width * (len(self.places) if block.among else 2 if block.with_query else 1)

    def forward(self, given: Given) -> Tensor:
        if self.block.among:
            query = keys = torch.stack([given.vectors[place] for place in self.places], 1)
            mask = None
        else:
            query = given.vectors[self.block.query % self.plan.vectors].unsqueeze(1)
            history = given.histories[self.block.history % self.plan.histories]
            keys, mask = history.rows, history.mask if self.block.masked else None
        y = self.attend(query, keys, mask).flatten(1)
        return torch.cat([query.squeeze(1), y], 1) if self.block.with_query and not self.block.among else y

    def attend(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        form = self.block.form
        if form == "module":
            ignored = None if mask is None else ~mask
            return self.module(query, keys, keys, key_padding_mask=ignored, need_weights=self.count > 1)[0]
        q, k, v = self.q(query), self.k(keys), self.v(keys)
        if form == "einsum":
            scores = torch.einsum("nqd,ntd->nqt", q, k) / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores + (1.0 - mask.to(q.dtype)).unsqueeze(1) * -1e4
            return self.out(torch.einsum("nqt,ntd->nqd", scores.softmax(-1), v))
        q, k, v = (x.unflatten(-1, (self.count, -1)).transpose(1, 2) for x in (q, k, v))
        seen = None if mask is None else mask[:, None, None, :]
        if form == "fused":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if seen is not None:
                scores = scores.masked_fill(~seen, float("-inf"))
            y = torch.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


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
