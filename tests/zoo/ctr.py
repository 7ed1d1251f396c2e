"""Click models: wide, factorised, crossed, attentive, with several outputs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import SIZES, Entry, ids, tower

FIELDS = {"user": 60, "item": 90, "city": 25, "device": 20}
"""Fields and their numbers of ids."""


class WideDeep(nn.Module):
    """Keyword arguments, a table and a first-order weight for each name."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, 8) for name, size in FIELDS.items()})
        self.wide = nn.ModuleDict({name: nn.Embedding(size, 1) for name, size in FIELDS.items()})
        self.deep = tower(35, 32, 16, 1, norm=True)

    def forward(self, user: Tensor, item: Tensor, city: Tensor, device: Tensor, dense: Tensor) -> Tensor:
        features = dict(zip(FIELDS, (user, item, city, device), strict=True))
        deep = self.deep(torch.cat([*[self.tables[name](x) for name, x in features.items()], dense], dim=-1))
        wide = sum(self.wide[name](x) for name, x in features.items())
        return torch.sigmoid(deep + wide)


class DeepFM(nn.Module):
    """Everything cut out of one packed float matrix, ids and numbers alike."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({f"C{i}": nn.Embedding(30 + i, 6) for i in range(5)})
        self.linear = nn.ModuleDict({f"C{i}": nn.Embedding(30 + i, 1) for i in range(5)})
        self.dense = nn.Parameter(torch.randn(3, 1))
        self.tower = tower(33, 24, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        rows = [table(x[:, i : i + 1].long()) for i, table in enumerate(self.tables.values())]
        linear = torch.cat(
            [table(x[:, i : i + 1].long()) for i, table in enumerate(self.linear.values())], dim=-1
        )
        logit = linear.sum(dim=-1) + x[:, 5:].matmul(self.dense)
        block = torch.cat(rows, dim=1)
        square = block.sum(dim=1, keepdim=True).pow(2) - (block * block).sum(dim=1, keepdim=True)
        logit = logit + 0.5 * square.sum(dim=2)
        logit = logit + self.tower(torch.cat([torch.flatten(block, 1), x[:, 5:]], dim=-1))
        return torch.sigmoid(logit + self.bias)


class DCNv2(nn.Module):
    """A matrix of ids, cross layers with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(40 - i, 4) for i in range(6)])
        self.cross = nn.ModuleList([nn.Linear(26, 26) for _ in range(3)])
        self.deep = tower(26, 24, 12)
        self.head = nn.Linear(38, 1)

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        x0 = torch.cat([*[table(sparse[:, i]) for i, table in enumerate(self.tables)], dense], 1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        score: Tensor = self.head(torch.cat([x, self.deep(x0)], 1)).squeeze(-1)
        return score.sigmoid()


class DLRM(nn.Module):
    """A matrix of bags' ids cut by the same offsets, dot products by triangle."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(40, 8, mode="sum") for _ in range(3)])
        self.bottom = tower(5, 16, 8)
        self.top = tower(8 + 6, 16, 1)

    def forward(self, dense: Tensor, lS_o: Tensor, lS_i: Tensor) -> Tensor:
        x = torch.relu(self.bottom(dense))
        rows = [bag(lS_i[:, k], lS_o) for k, bag in enumerate(self.bags)]
        block = torch.cat([x, *rows], dim=1).view(x.shape[0], -1, 8)
        products = torch.bmm(block, torch.transpose(block, 1, 2))
        lower, left = torch.tril_indices(4, 4, offset=-1)
        return torch.sigmoid(self.top(torch.cat([x, products[:, lower, left]], dim=1)))


class DLRMLists(nn.Module):
    """Lists of ids and of offsets, one of each for a field."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(size, 4, mode="sum") for size in (30, 50, 20)])
        self.bot_l = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())
        self.top_l = tower(4 + 6, 16, 1)

    def forward(self, dense_x: Tensor, lS_o: list[Tensor], lS_i: list[Tensor]) -> Tensor:
        x = self.bot_l(dense_x)
        ly = [bag(values, starts) for bag, values, starts in zip(self.emb_l, lS_i, lS_o, strict=True)]
        block = torch.stack([x, *ly], dim=1)
        products = block @ block.mT
        lower = torch.tensor([i for i in range(4) for _ in range(i)])
        left = torch.tensor([j for i in range(4) for j in range(i)])
        score: Tensor = self.top_l(torch.cat([x, products[:, lower, left]], dim=1))
        return score.sigmoid()


class XDeepFM(nn.Module):
    """Compressed interactions by 1 x 1 convolutions."""

    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4 * 20, 6)
        self.register_buffer("offsets", torch.tensor([0, 15, 40, 50]))
        self.convs = nn.ModuleList([nn.Conv1d(16, 5, 1), nn.Conv1d(20, 5, 1)])
        self.head = nn.Linear(10, 1)
        self.tower = tower(24, 16, 1, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        block = self.table(x + self.offsets.unsqueeze(0))
        hidden, pooled = block, []
        for conv in self.convs:
            outer = torch.einsum("bhd,bmd->bhmd", hidden, block)
            hidden = F.relu(conv(outer.flatten(1, 2)))
            pooled.append(hidden.sum(-1))
        return torch.sigmoid(self.head(torch.cat(pooled, 1)) + self.tower(block.flatten(1))).squeeze(1)


class AutoInt(nn.Module):
    """Attention over fields."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(25 + 2 * i, 8) for i in range(5)])
        self.attention = nn.ModuleList(
            [nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True) for _ in range(2)]
        )
        self.residual = nn.Linear(8, 8)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        block = torch.stack([table(x[:, i]) for i, table in enumerate(self.tables)], dim=1)
        y = block
        for layer in self.attention:
            y, _ = layer(y, y, y, need_weights=False)
        score: Tensor = self.head(F.relu(y + self.residual(block)).flatten(1))
        return score.sigmoid()


class FiBiNET(nn.Module):
    """Squeeze-and-excitation, bilinear products of pairs, one dict as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, 6) for name, size in FIELDS.items()})
        self.squeeze = nn.Sequential(
            nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 4, bias=False), nn.ReLU()
        )
        self.bilinear = nn.Linear(6, 6, bias=False)
        self.tower = tower(72, 16, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        block = torch.stack([table(batch[name]) for name, table in self.tables.items()], 1)
        scaled = block * self.squeeze(block.mean(-1)).unsqueeze(-1)
        pairs = [
            self.bilinear(x[:, i]) * x[:, j] for x in (block, scaled) for i, j in combinations(range(4), 2)
        ]
        score: Tensor = self.tower(torch.cat(pairs, dim=1))
        return score.sigmoid()


class NFM(nn.Module):
    """One shared table with offsets, a dropped-out bi-interaction."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 8)
        self.first = nn.EmbeddingBag(60, 1, mode="sum")
        self.offset = (0, 20, 35)
        self.norm = nn.BatchNorm1d(8)
        self.tower = tower(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offset)
        rows = self.table(x)
        pooled = 0.5 * (rows.sum(1) ** 2 - (rows**2).sum(1))
        first: Tensor = self.first(x)
        return first + self.tower(F.dropout(self.norm(pooled), 0.3, self.training))


class PairwiseFM(nn.Module):
    """A factorisation machine by loops over pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(20 + 10 * i, 8) for i in range(4)])

    def forward(self, *columns: Tensor) -> Tensor:
        rows = [table(x) for table, x in zip(self.tables, columns, strict=True)]
        total = torch.zeros_like(rows[0][:, 0])
        for i in range(len(rows)):
            for j in range(i + 1, len(rows)):
                total = total + (rows[i] * rows[j]).sum(1)
        return total


class FwFM(nn.Module):
    """Pairs of fields by index tensors, a weight for each, one table with offsets."""

    row: Tensor
    column: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(100, 6), nn.Embedding(100, 1)
        self.offsets = (0, 30, 50, 65, 75)
        row, column = zip(*combinations(range(5), 2), strict=True)
        self.register_buffer("row", torch.tensor(row))
        self.register_buffer("column", torch.tensor(column))
        self.weights = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets).unsqueeze(0)
        rows = self.table(x)
        products = torch.sum(rows[:, self.row] * rows[:, self.column], dim=2)
        score: Tensor = self.weights(products) + self.first(x).sum(1)
        return torch.sigmoid(score.squeeze(1))


class DCNMix(nn.Module):
    """Cross layers of low rank: one plain, the others mixtures of experts behind a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(40, 4) for _ in range(5)])
        self.plain = nn.Sequential(nn.Linear(20, 4, bias=False), nn.Linear(4, 20))
        self.down = nn.Parameter(torch.randn(2, 3, 20, 4) * 0.3)
        self.middle = nn.Parameter(torch.randn(2, 3, 4, 4) * 0.3)
        self.up = nn.Parameter(torch.randn(2, 3, 4, 20) * 0.3)
        self.gates = nn.ModuleList([nn.Linear(20, 3) for _ in range(2)])
        self.head = nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = torch.cat([table(x[:, i]) for i, table in enumerate(self.tables)], 1)
        x = x0 * self.plain(x0) + x0
        for k, gate in enumerate(self.gates):
            hidden = torch.tanh(torch.einsum("nd,edr->ner", x, self.down[k]))
            hidden = torch.tanh(torch.einsum("ner,ers->nes", hidden, self.middle[k]))
            experts = x0.unsqueeze(1) * torch.einsum("nes,esd->ned", hidden, self.up[k])
            x = torch.bmm(gate(x).softmax(1).unsqueeze(1), experts).squeeze(1) + x
        return torch.sigmoid(self.head(x)).squeeze(1)


class MMoE(nn.Module):
    """Experts, gates, one output for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(50 - 10 * i, 6) for i in range(4)])
        self.experts = nn.ModuleList([tower(24, 16, 8) for _ in range(3)])
        self.gates = nn.ModuleDict({task: nn.Linear(24, 3) for task in ("click", "buy")})
        self.heads = nn.ModuleDict({task: tower(8, 8, 1) for task in ("click", "buy")})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.cat([table(x[..., i]) for i, table in enumerate(self.tables)], -1)
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        answers = {}
        for task, gate in self.gates.items():
            mixed = (gate(x).softmax(-1).unsqueeze(-1) * experts).sum(1)
            answers[task] = self.heads[task](mixed).squeeze(-1).sigmoid()
        return answers


def _columns(r: torch.Generator, n: int, *sizes: int) -> Tensor:
    return torch.stack([ids(r, n, size=size) for size in sizes], 1)


def _named(n: int, r: torch.Generator) -> dict[str, Tensor]:
    return {name: ids(r, n, size=size) for name, size in FIELDS.items()}


def _wide(n: int, r: torch.Generator) -> dict[str, Tensor]:
    return {**_named(n, r), "dense": torch.randn(n, 3, generator=r)}


def _packed(n: int, r: torch.Generator) -> Tensor:
    return torch.cat([_columns(r, n, *range(30, 35)).float(), torch.randn(n, 3, generator=r)], 1)


def _crossed(n: int, r: torch.Generator) -> dict[str, Tensor]:
    return {"sparse": _columns(r, n, *range(40, 34, -1)), "dense": torch.randn(n, 2, generator=r)}


def _pairs(n: int, r: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(n, 5, generator=r), torch.arange(n) * 2, ids(r, 2 * n, 3)


def _lists(n: int, r: torch.Generator) -> tuple[Any, ...]:
    lengths = [torch.randint(0, 4, (n,), generator=r) for _ in range(3)]
    values = [ids(r, int(x.sum()), size=size) for x, size in zip(lengths, (30, 50, 20), strict=True)]
    return torch.randn(n, 5, generator=r), [x.cumsum(0) - x for x in lengths], values


ENTRIES = (
    Entry("wide_deep", WideDeep, _wide, request=("user", "dense")),
    Entry("deepfm", DeepFM, _packed, request={"x": [0, 2, 5, 7]}),
    Entry("dcnv2", DCNv2, _crossed, request={"sparse": [0, 1, 4], "dense": True}),
    Entry("dlrm", DLRM, _pairs, sizes=SIZES[1:], request=("dense",)),
    Entry("dlrm_lists", DLRMLists, _lists, request=("dense_x",)),
    Entry("xdeepfm", XDeepFM, lambda n, r: _columns(r, n, 15, 25, 10, 30), request={"x": [1, -1]}),
    Entry("autoint", AutoInt, lambda n, r: _columns(r, n, 25, 27, 29, 31, 33), request={"x": range(3)}),
    Entry("fibinet", FiBiNET, _named, request=("user", "city")),
    Entry("nfm", NFM, lambda n, r: _columns(r, n, 20, 15, 25), request={"x": [0]}),
    Entry(
        "pairwise_fm",
        PairwiseFM,
        lambda n, r: _columns(r, n, 20, 30, 40, 50).unbind(1),
        request=("args[1]", "args[3]"),
    ),
    Entry("mmoe", MMoE, lambda n, r: _columns(r, n, 50, 40, 30, 20), request={"x": [0, 2]}),
    Entry("fwfm", FwFM, lambda n, r: _columns(r, n, 30, 20, 15, 10, 25), request={"x": [0, 3]}),
    Entry("dcn_mix", DCNMix, lambda n, r: _columns(r, n, 40, 40, 40, 40, 40), request={"x": [1, 2, 4]}),
)
