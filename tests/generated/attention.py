"""Blocks of the generated models that read histories: activation units and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .core import Core, Given, Plan, picked
from .describe import Attention, Unit
from .layers import Layers

__all__ = ["AttentionCore", "UnitCore"]


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
