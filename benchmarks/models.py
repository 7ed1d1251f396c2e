"""The standard cases: eight recommenders written the way their users write them.

Plain `nn.ModuleList`s of `nn.Embedding`, one lookup per field, layers applied one after the other: no case is written to
suit a compiler, fastrec's included. Weights are random; BatchNorm statistics are too, as they are after training.
Ids are uniform over each table, so no lookup is kinder to the caches than it would be in the worst service.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CASES", "SIZES", "Batch", "Case"]

Batch = tuple[Tensor, ...]
SIZES = (1, 32, 100, 500, 1000)
SHORT_SIZES = (1, 32, 100)
ROWS = 100_000
WIDTH = 16
FIELDS, DENSE = 26, 13
HISTORY = 50
TOKENS, VOCABULARY = 32, 30_522
ITEMS, STEPS = 100_000, 200


@dataclass(frozen=True)
class Case:
    """A model, and how to draw its batches.

    `make()` builds the model with whatever RNG state it finds; `build()` does so with a fixed seed, in eval mode.
    `make_batch(n, generator)` draws a fresh batch of `n` rows (`n` candidates where one request scores many).
    `axes` names the batch's tensors in order, as `forward` does, each with the dimension that holds the rows, None
    where it holds none. `request` names the features that are the user's and the context's, the same for all
    candidates of one call, as `fastrec.compress` takes them: True or columns; None where one call is not one request.
    `note` says what about the case is not obvious, such as why its list of sizes is cut.
    """

    name: str
    make: Callable[[], nn.Module]
    make_batch: Callable[[int, torch.Generator], Batch]
    axes: Mapping[str, int | None]
    request: Mapping[str, bool | tuple[int, ...]] | None = None
    sizes: tuple[int, ...] = SIZES
    transformer: bool = False
    note: str = ""

    def build(self, seed: int = 0) -> nn.Module:
        """The model with the weights of `seed`, in eval mode; the caller's RNG state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    assert module.running_mean is not None and module.running_var is not None
                    nn.init.normal_(module.running_mean, std=0.2)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                elif isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=0.15)
                elif isinstance(module, nn.Linear):  # as wide apart as trained scores: torch's default is not
                    nn.init.kaiming_normal_(module.weight)
        return model.eval().requires_grad_(False)

    def of_one_request(self) -> Case:
        """The case whose batches score one request: every row holds the request features of row 0, as services send them."""

        def make_batch(n: int, generator: torch.Generator) -> Batch:
            return self._same(self.make_batch(n, generator))

        return replace(self, make_batch=make_batch)

    def given_once(self, batch: Batch) -> Batch:
        """The batch with one row of each feature that belongs to the request as a whole; views."""
        request = self.request or {}
        return tuple(
            tensor.narrow(axis, 0, 1) if request.get(name) is True and axis is not None else tensor
            for tensor, (name, axis) in zip(batch, self.axes.items(), strict=True)
        )

    def _same(self, batch: Batch) -> Batch:
        made = []
        for tensor, once, name in zip(batch, self.given_once(batch), self.axes, strict=True):
            columns = (self.request or {}).get(name, False)
            tensor = once.expand_as(tensor).contiguous()
            if not isinstance(columns, bool):
                tensor = tensor.clone()
                tensor[:, columns] = tensor[:1, columns].clone()
            made.append(tensor)
        return tuple(made)


def _ids(generator: torch.Generator, *shape: int, rows: int = ROWS) -> Tensor:
    return torch.randint(rows, shape, generator=generator)


def _mlp(*widths: int, batch_norm: bool = False) -> list[nn.Module]:
    """Linear (BatchNorm) ReLU Dropout for each pair of widths."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Linear(before, after))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers += [nn.ReLU(), nn.Dropout(0.1)]
    return layers


def _tables(count: int, width: int = WIDTH) -> nn.ModuleList:
    return nn.ModuleList([nn.Embedding(ROWS, width) for _ in range(count)])


def _click_batch(n: int, generator: torch.Generator) -> Batch:
    return _ids(generator, n, FIELDS), torch.rand(n, DENSE, generator=generator)


class DeepFM(nn.Module):
    """ids (N, 26) and dense (N, 13) -> click probability (N,): first order + factorisation machine + MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = _tables(FIELDS)
        self.first_order = _tables(FIELDS, 1)
        self.dense_first_order = nn.Linear(DENSE, 1)
        self.mlp = nn.Sequential(
            *_mlp(FIELDS * WIDTH + DENSE, 400, 400, 400, batch_norm=True), nn.Linear(400, 1)
        )

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        fields = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        first = torch.cat([table(ids[:, i]) for i, table in enumerate(self.first_order)], dim=1)
        first = first.sum(dim=1, keepdim=True) + self.dense_first_order(dense)
        square_of_sum = fields.sum(dim=1).pow(2)
        sum_of_square = fields.pow(2).sum(dim=1)
        second = 0.5 * (square_of_sum - sum_of_square).sum(dim=1, keepdim=True)
        deep = self.mlp(torch.cat([fields.flatten(1), dense], dim=1))
        return torch.sigmoid(first + second + deep).squeeze(1)


class DLRM(nn.Module):
    """ids (N, 26) and dense (N, 13) -> click probability (N,): dot products of every pair of fields."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tables = _tables(FIELDS)
        self.bottom = nn.Sequential(*_mlp(DENSE, 512, 256, WIDTH))
        self.register_buffer("pairs", torch.tril_indices(FIELDS + 1, FIELDS + 1, offset=-1))
        self.top = nn.Sequential(*_mlp(WIDTH + (FIELDS + 1) * FIELDS // 2, 512, 256), nn.Linear(256, 1))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        fields = [bottom] + [table(ids[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.stack(fields, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        interactions = products[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([bottom, interactions], dim=1))).squeeze(1)


class DCNv2(nn.Module):
    """ids (N, 26) and dense (N, 13) -> click probability (N,): three full-rank cross layers beside an MLP."""

    def __init__(self) -> None:
        super().__init__()
        width = FIELDS * WIDTH + DENSE
        self.tables = _tables(FIELDS)
        self.cross = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.deep = nn.Sequential(*_mlp(width, 512, 256))
        self.head = nn.Linear(width + 256, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        start = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)] + [dense], dim=1)
        crossed = start
        for layer in self.cross:
            crossed = start * layer(crossed) + crossed
        return torch.sigmoid(self.head(torch.cat([crossed, self.deep(start)], dim=1))).squeeze(1)


class Dice(nn.Module):
    """Dice: p x + (1 - p) alpha x with p = sigmoid(BatchNorm(x)), over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-8)
        self.alpha = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape))
        return gate * x + (1 - gate) * self.alpha * x


class DIN(nn.Module):
    """user fields (N, 8), item (N,), category (N,), histories (N, 50) twice -> click probability (N,).

    Id 0 pads the histories.
    """

    def __init__(self) -> None:
        super().__init__()
        self.user_tables = _tables(8)
        self.items = nn.Embedding(ROWS, WIDTH, padding_idx=0)
        self.categories = nn.Embedding(1000, WIDTH, padding_idx=0)
        wide = 2 * WIDTH
        self.activation_unit = nn.Sequential(
            nn.Linear(4 * wide, 80), Dice(80), nn.Linear(80, 40), Dice(40), nn.Linear(40, 1)
        )
        self.mlp = nn.Sequential(
            nn.Linear(8 * WIDTH + 2 * wide, 200), Dice(200), nn.Linear(200, 80), Dice(80), nn.Linear(80, 1)
        )

    def forward(
        self, user: Tensor, item: Tensor, category: Tensor, item_history: Tensor, category_history: Tensor
    ) -> Tensor:
        query = torch.cat([self.items(item), self.categories(category)], dim=-1)
        keys = torch.cat([self.items(item_history), self.categories(category_history)], dim=-1)
        queries = query.unsqueeze(1).expand(-1, keys.shape[1], -1)
        scores = self.activation_unit(torch.cat([queries, keys, queries - keys, queries * keys], dim=-1))
        scores = scores.masked_fill((item_history == 0).unsqueeze(-1), 0.0)
        interest = (scores * keys).sum(dim=1)
        profile = [table(user[:, i]) for i, table in enumerate(self.user_tables)]
        return torch.sigmoid(self.mlp(torch.cat([*profile, query, interest], dim=-1))).squeeze(-1)


def _din_batch(n: int, generator: torch.Generator) -> Batch:
    lengths = torch.randint(1, HISTORY + 1, (n, 1), generator=generator)
    real = torch.arange(HISTORY) < lengths
    items = (1 + _ids(generator, n, HISTORY, rows=ROWS - 1)) * real
    categories = (1 + _ids(generator, n, HISTORY, rows=999)) * real
    return _ids(generator, n, 8), _ids(generator, n), _ids(generator, n, rows=1000), items, categories


class SASRecBlock(nn.Module):
    """Causal self-attention and a two-layer feed-forward part, normalised before each."""

    causal: Tensor

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(width, num_heads=1, dropout=0.2, batch_first=True)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("causal", torch.triu(torch.ones(steps, steps, dtype=torch.bool), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.attention_norm(x)
        attended, _ = self.attention(query, x, x, attn_mask=self.causal, need_weights=False)
        x = self.feed_forward_norm(query + attended)
        return cast("Tensor", x + self.dropout(self.outer(self.dropout(F.relu(self.inner(x))))))


class SASRec(nn.Module):
    """history (1, T) and candidates (1, N) -> scores (1, N); or history (N, T) and item (N,) -> scores (N,)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, width, padding_idx=0)
        self.positions = nn.Embedding(STEPS, width)
        self.blocks = nn.ModuleList([SASRecBlock(width, STEPS) for _ in range(2)])
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def encode(self, history: Tensor) -> Tensor:
        positions = self.positions(torch.arange(history.shape[1], device=history.device))
        real = (history != 0).unsqueeze(-1)
        x = (self.items(history) * math.sqrt(self.items.embedding_dim) + positions) * real
        for block in self.blocks:
            x = block(x) * real
        return cast("Tensor", self.norm(x)[:, -1])

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        state = self.encode(history)
        items = self.items(candidates)
        if candidates.dim() == 1:
            return cast("Tensor", (items * state).sum(dim=-1))
        return torch.matmul(items, state.unsqueeze(-1)).squeeze(-1)


def _history(n: int, generator: torch.Generator) -> Tensor:
    """Histories padded on the left with id 0, as SASRec has them."""
    padding = torch.randint(0, STEPS, (n, 1), generator=generator)
    return (1 + _ids(generator, n, STEPS, rows=ITEMS - 1)) * (torch.arange(STEPS) >= padding)


def _sasrec_batch(n: int, generator: torch.Generator) -> Batch:
    return _history(1, generator), 1 + _ids(generator, 1, n, rows=ITEMS - 1)


def _sasrec_rows_batch(n: int, generator: torch.Generator) -> Batch:
    return _history(n, generator), 1 + _ids(generator, n, rows=ITEMS - 1)


class TwoTower(nn.Module):
    """user fields (N, 8) and item fields (N, 6) -> cosine similarity (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.user_tables = _tables(8)
        self.item_tables = _tables(6)
        self.user_tower = nn.Sequential(*_mlp(8 * WIDTH, 256, 128), nn.Linear(128, 64))
        self.item_tower = nn.Sequential(*_mlp(6 * WIDTH, 256, 128), nn.Linear(128, 64))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        users = torch.cat([table(user[:, i]) for i, table in enumerate(self.user_tables)], dim=1)
        items = torch.cat([table(item[:, i]) for i, table in enumerate(self.item_tables)], dim=1)
        left = F.normalize(self.user_tower(users), dim=-1)
        right = F.normalize(self.item_tower(items), dim=-1)
        return (left * right).sum(dim=-1)


def _two_tower_batch(n: int, generator: torch.Generator) -> Batch:
    return _ids(generator, n, 8), _ids(generator, n, 6)


class EncoderLayer(nn.Module):
    """One BERT layer: self-attention, then a GELU feed-forward part, normalised after each."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.inner = nn.Linear(hidden, 4 * hidden)
        self.outer = nn.Linear(4 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = context.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.dropout(self.output(context)))
        return cast("Tensor", self.norm(x + self.dropout(self.outer(F.gelu(self.inner(x))))))


class TextRanker(nn.Module):
    """tokens (N, 32) and attention mask (N, 32) -> relevance (N,): a small BERT and a head on its first token."""

    def __init__(self, hidden: int = 384, layers: int = 6, heads: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, hidden, padding_idx=0)
        self.positions = nn.Embedding(512, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList([EncoderLayer(hidden, heads) for _ in range(layers)])
        self.head = nn.Sequential(nn.Linear(hidden, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(positions))
        mask = attention_mask[:, None, None, :].to(torch.bool)
        for layer in self.layers:
            x = layer(x, mask)
        return cast("Tensor", self.head(x[:, 0]).squeeze(-1))


def _text_batch(n: int, generator: torch.Generator) -> Batch:
    lengths = torch.randint(8, TOKENS + 1, (n, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).to(torch.int64)
    return (1 + _ids(generator, n, TOKENS, rows=VOCABULARY - 1)) * mask, mask


_CUT = "sizes end at 100: a row costs {} of arithmetic, so more rows in one call is not how it is served"

# 16 of the 26 fields and the dense features are the user's and the context's, 10 fields the candidate's.
_CLICK = {"ids": 0, "dense": 0}
_CLICK_REQUEST: dict[str, bool | tuple[int, ...]] = {"ids": tuple(range(16)), "dense": True}
_DIN = dict.fromkeys(("user", "item", "category", "item_history", "category_history"), 0)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("deepfm", DeepFM, _click_batch, _CLICK, _CLICK_REQUEST),
        Case("dlrm", DLRM, _click_batch, _CLICK, _CLICK_REQUEST),
        Case("dcnv2", DCNv2, _click_batch, _CLICK, _CLICK_REQUEST),
        Case("din", DIN, _din_batch, _DIN, {"user": True, "item_history": True, "category_history": True}),
        Case(
            "sasrec",
            SASRec,
            _sasrec_batch,
            {"history": None, "candidates": 1},
            {},  # its history is given once already
            transformer=True,
            note="one history scores N items",
        ),
        Case(
            "sasrec_rows",
            SASRec,
            _sasrec_rows_batch,
            {"history": 0, "candidates": 0},
            {"history": True},
            SHORT_SIZES,
            True,
            _CUT.format("40 MFLOP"),
        ),
        Case("two_tower", TwoTower, _two_tower_batch, {"user": 0, "item": 0}, {"user": True}),
        Case(
            "text_ranker",
            TextRanker,
            _text_batch,
            {"tokens": 0, "attention_mask": 0},
            None,
            SHORT_SIZES,
            True,
            _CUT.format("700 MFLOP"),
        ),
    )
}
