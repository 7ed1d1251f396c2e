"""Models of behaviour sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import SIZES, Entry, ids, tower

STEPS = 12


class Dice(nn.Module):
    """The activation of DIN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.norm(x))
        return self.alpha * (1 - gate) * x + gate * x


class DIN(nn.Module):
    """A candidate attends to a padded history."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(40, 8, padding_idx=0)
        self.users = nn.Embedding(40, 8)
        self.unit = nn.Sequential(nn.Linear(32, 16), nn.PReLU(), nn.Linear(16, 1))
        self.mlp = nn.Sequential(nn.Linear(24, 16), Dice(16), nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        query, keys = self.items(item), self.items(history)
        spread = query.unsqueeze(1).expand(-1, history.size(1), -1)
        score = self.unit(torch.cat([spread, keys, spread - keys, spread * keys], dim=-1))
        score = score.masked_fill((history == 0).unsqueeze(-1), 0.0)
        pooled = (score * keys).sum(dim=1)
        logit: Tensor = self.mlp(torch.cat([self.users(user), query, pooled], dim=1))
        return logit.squeeze(1).sigmoid()


class GRU4Rec(nn.Module):
    """The last state of a GRU against all items, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(40, 8, padding_idx=0)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, history: Tensor) -> Tensor:
        states: Tensor = self.gru(self.items(history))[0]
        return states[:, -1] @ self.items.weight.t()


class Block(nn.Module):
    """Causal self-attention and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)
        scores = self.query(h) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        y: Tensor = x + scores.masked_fill(mask, -1e9).softmax(-1) @ self.value(x)
        return torch.add(y, self.feed(self.second(y)))


class SASRec(nn.Module):
    """One history scores many candidates, or row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(40, 8, padding_idx=0)
        self.positions = nn.Embedding(STEPS, 8)
        self.blocks = nn.ModuleList([Block(8) for _ in range(2)])
        self.norm = nn.LayerNorm(8)

    def encode(self, history: Tensor) -> Tensor:
        steps = torch.arange(history.shape[1], device=history.device)
        x = self.items(history) * 8**0.5 + self.positions(steps)
        mask = torch.triu(torch.ones(len(steps), len(steps), dtype=torch.bool), 1)
        for block in self.blocks:
            x = block(x, mask)
        states: Tensor = self.norm(x)
        return states[:, -1]

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        state = self.encode(history)
        items: Tensor = self.items(candidates)
        if candidates.dim() == 1:
            return (items * state).sum(-1)
        return items.matmul(state.unsqueeze(-1)).squeeze(-1)


class BERT4Rec(nn.Module):
    """Bidirectional, read at the mask token."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(42, 16, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, STEPS, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.bias = nn.Parameter(torch.zeros(42))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.items(tokens) + self.positions, src_key_padding_mask=tokens == 0)
        return F.linear(x[:, -1], self.items.weight, self.bias)


class FirstToken(nn.Module):
    """A text encoder read at its first token, heads by view and transpose, keys and values in one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(40, 16, padding_idx=0), nn.Parameter(torch.randn(16))
        self.positions = nn.Embedding(STEPS + 1, 16)
        self.query, self.both, self.out = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(2)])
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16))
        self.head = nn.Linear(16, 1)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 2, 8).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.first.expand(tokens.shape[0], 1, -1)
        x = torch.cat([first, self.words(tokens)], 1) + self.positions.weight
        mask = F.pad(tokens > 0, (1, 0), value=True)[:, None, None]
        keys, values = self.both(x).chunk(2, -1)
        y = F.scaled_dot_product_attention(
            self.split(self.query(x)), self.split(keys), self.split(values), mask
        )
        x = self.norms[0](x + self.out(y.transpose(1, 2).flatten(2)))
        x = self.norms[1](x + self.feed(x))
        score: Tensor = self.head(x[:, 0])
        return score.squeeze(-1)


class FMLPRec(nn.Module):
    """Filters in the frequency domain in place of attention, read at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(40, 8, padding_idx=0), nn.Embedding(STEPS, 8)
        self.filters = nn.ParameterList([torch.randn(1, STEPS // 2 + 1, 8, 2) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(8, eps=1e-12) for _ in range(3)])
        self.feeds = nn.ModuleList([tower(8, 32, 8) for _ in range(2)])

    def forward(self, history: Tensor) -> Tensor:
        x = self.norms[0](self.items(history) + self.positions.weight)
        for weight, norm, feed in zip(self.filters, self.norms[1:], self.feeds, strict=True):
            spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(weight)
            x = norm(x + torch.fft.irfft(spectrum, n=STEPS, dim=1, norm="ortho"))
            x = x + feed(x)
        return x[:, -1] @ self.items.weight.t()


class PaddedRight(nn.Module):
    """A causal encoder over histories padded on the right, read at the last step of each, as in RecBole."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(40, 8, padding_idx=0), nn.Embedding(STEPS, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.feed = tower(8, 16, 8)

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        steps = torch.arange(history.shape[1], device=history.device)
        x = self.items(history) + self.positions(steps.unsqueeze(0).expand_as(history))
        seen = (history != 0)[:, None, None].expand(-1, -1, history.shape[1], -1)
        mask = torch.where(torch.tril(seen), 0.0, -10000.0)
        q, k, v = (layer(x).view(*x.shape[:2], 2, 4).permute(0, 2, 1, 3) for layer in list(self.heads)[:3])
        weights = (q @ k.transpose(-1, -2) / 2.0 + mask).softmax(-1)
        y = (weights @ v).permute(0, 2, 1, 3).contiguous().view(x.shape)
        x = self.norms[0](x + self.heads[3](y))
        x = self.norms[1](x + self.feed(x))
        last = (length - 1).view(-1, 1, 1).expand(-1, -1, x.shape[-1])
        return x.gather(1, last).squeeze(1) @ self.items.weight.t()


class Caser(nn.Module):
    """Convolutions along and across the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(40, 8, padding_idx=0), nn.Embedding(40, 8)
        self.across = nn.Conv2d(1, 2, (STEPS, 1))
        self.along = nn.ModuleList([nn.Conv2d(1, 4, (k, 8)) for k in (2, 3)])
        self.head = nn.Linear(2 * 8 + 2 * 4, 8)
        self.targets = nn.Embedding(40, 16)

    def forward(self, history: Tensor, user: Tensor, target: Tensor) -> Tensor:
        x = self.items(history).unsqueeze(1)
        parts = [self.across(x).flatten(1)]
        for conv in self.along:
            y = F.relu(conv(x).squeeze(3))
            parts.append(F.max_pool1d(y, y.size(2)).squeeze(2))
        z = torch.cat([torch.relu(self.head(torch.cat(parts, 1))), self.users(user)], 1)
        return torch.sum(z * self.targets(target), 1)


class Interest(nn.Module):
    """A tower over pooled histories, mean over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8, padding_idx=0)
        self.tower = tower(16, 16, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        mask = (history > 0).float().unsqueeze(-1)
        mean = (self.table(history) * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        score: Tensor = self.tower(torch.cat([mean, self.table(item)], 1))
        return score


def _history(n: int, r: torch.Generator, fewest: int = 0) -> Tensor:
    """The last `fewest` to STEPS steps, zeros before them."""
    padding = torch.randint(0, STEPS + 1 - fewest, (n, 1), generator=r)
    return ids(r, n, STEPS, low=1) * (torch.arange(STEPS) >= padding)


def _prefix(n: int, r: torch.Generator) -> tuple[Tensor, Tensor]:
    """Histories that are padded on the right, and their lengths."""
    length = torch.randint(1, STEPS + 1, (n,), generator=r)
    return ids(r, n, STEPS, low=1) * (torch.arange(STEPS) < length.unsqueeze(1)), length


def _behaviour(n: int, r: torch.Generator) -> dict[str, Tensor]:
    return {"user": ids(r, n), "item": ids(r, n, low=1), "history": _history(n, r)}


ENTRIES = (
    Entry("din", DIN, _behaviour, request=("user", "history")),
    Entry("gru4rec", GRU4Rec, _history),
    Entry("sasrec", SASRec, lambda n, r: (_history(1, r), ids(r, 1, n)), request=("history",)),
    Entry("sasrec_rows", SASRec, lambda n, r: (_history(n, r), ids(r, n)), request=("history",)),
    # Attention with every key masked is not a number, in the original too.
    Entry("bert4rec", BERT4Rec, lambda n, r: _history(n, r, fewest=1)),
    Entry("first_token", FirstToken, _history),
    # The Fourier transform of no rows is an error.
    Entry("fmlp", FMLPRec, _history, sizes=SIZES[1:]),
    Entry("padded_right", PaddedRight, _prefix),
    Entry("caser", Caser, lambda n, r: (_history(n, r), ids(r, n), ids(r, n)), request=("history", "user")),
    Entry("interest", Interest, lambda n, r: (_history(n, r), ids(r, n, low=1)), request=("history",)),
)
