"""Models that everything was pruned from go on through fusion and 8 bits to every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastrec.backends import BACKENDS, Backend
from fastrec.capture import capture
from fastrec.errors import BackendError
from fastrec.program import Program
from fastrec.techniques import (
    DropBlocks,
    Fuse,
    PruneDead,
    PruneFields,
    PruneHeads,
    PruneNeurons,
    PruneRows,
    QuantizeLinears,
    QuantizeTables,
    Recover,
    Technique,
)

WIDTH, STEPS = 16, 6


class Everything(nn.Module):
    """ids (N, 3), history (N, 6) -> two scores (N,): shared table, attention, residual parts, experts of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(300, WIDTH)
        self.fields = nn.ModuleList(nn.Embedding(20, WIDTH) for _ in range(2))
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.inner, self.outer = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4 * WIDTH, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(2)
        )
        self.gates = nn.ModuleList(nn.Linear(4 * WIDTH, 2) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(2))

    def forward(self, ids: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        x = self.items(history)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.outer(torch.relu(self.inner(x)))
        rows = [self.items(ids[:, 0]), *(table(ids[:, i + 1]) for i, table in enumerate(self.fields))]
        joined = torch.cat([*rows, x.mean(1)], 1)
        mixed = torch.stack([expert(joined) for expert in self.experts], 1)
        scores = [
            head((gate(joined).softmax(1).unsqueeze(2) * mixed).sum(1)).squeeze(1)
            for gate, head in zip(self.gates, self.heads, strict=True)
        ]
        return torch.sigmoid(scores[0]), torch.sigmoid(scores[1])


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(20, (rows, 3), generator=rng), torch.randint(200, (rows, STEPS), generator=rng)


RECIPE: tuple[Technique, ...] = (
    PruneFields(0.7), PruneDead(), PruneNeurons(0.5), PruneHeads(0.5), DropBlocks(1), Recover(steps=20),
    Fuse(fold_bytes=0), PruneRows(1, least_bytes=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def pruned() -> Program:
    plain = capture(Program.read(Everything().eval(), batch(8, 0)))
    program = replace(plain, calibration=tuple(batch(128, seed) for seed in range(4)), origin=plain.model)
    changed = []
    for technique in RECIPE:
        applied = technique.apply(program)
        changed += [technique.name] * bool(applied.changes)
        program = program.with_model(applied.model)
    assert changed == [technique.name for technique in RECIPE if technique.name != "prune_dead"]
    return program


@pytest.fixture(scope="module")
def coded(pruned: Program) -> Program:
    for technique in (QuantizeTables(8, least_bytes=0), QuantizeLinears(least=0)):
        applied = technique.apply(pruned)
        assert applied.changes
        pruned = pruned.with_model(applied.model)
    return pruned


@pytest.mark.parametrize("kind", BACKENDS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("form", ["pruned", "coded"])
def test_every_backend_answers_as_the_graph_does(
    kind: type[Backend], form: str, request: pytest.FixtureRequest
) -> None:
    backend = kind()
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program: Program = request.getfixturevalue(form)
    try:
        session = backend.compile(program)
    except BackendError as error:
        # What a processor has no exact kernel for, its backend refuses.
        assert form == "coded" and ("8-bit" in str(error) or "codes" in str(error))
        return
    for rows in (1, 2, 33):
        given = batch(rows, 50 + rows)
        for got, right in zip(session(*given), program.answers(given), strict=True):
            assert got.shape == right.shape
            torch.testing.assert_close(got, right, rtol=1e-3, atol=2e-3 if form == "coded" else 1e-5)
