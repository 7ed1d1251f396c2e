"""RotateTowers: exact where nothing is cut, in the columns that are used where something is, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import sweep
from fastrec.program import Program
from fastrec.techniques import Fuse, RotateTowers
from fastrec.techniques.projection.streams import streams
from fastrec.techniques.projection.turning import basis_of_stream, turn
from fastrec.techniques.quantization.layers import named
from tests.checks import double, flat

STEPS, WIDTH, USED = 6, 24, 11


class Tower(nn.Module):
    """histories (N, 6) and items (N,) -> scores (N,); pre-norm, unless `post`; the stream lies in `used` columns, turned."""

    def __init__(self, last: bool = True, post: bool = False, used: int = WIDTH) -> None:
        super().__init__()
        self.post = post
        self.items, self.positions = nn.Embedding(30, WIDTH), nn.Parameter(torch.empty(STEPS, WIDTH))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * 16) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(16, WIDTH) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 40, bias=False) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(40, WIDTH) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=0.01) for _ in range(4))
        self.last = nn.LayerNorm(WIDTH, elementwise_affine=False) if last else nn.Identity()
        rng = torch.Generator().manual_seed(1)
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=rng)).Q[:, :used]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))
            for rows in (self.items.weight, self.positions):
                rows.copy_(rows @ basis @ basis.t())
            for layer in (*self.out, *self.down):
                layer.weight.copy_(basis @ basis.t() @ layer.weight)
                layer.bias.copy_(basis @ basis.t() @ layer.bias)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.items(history) * 2 + self.positions
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            first, second = self.norms[2 * i], self.norms[2 * i + 1]
            q, k, v = (
                t.unflatten(-1, (2, 8)).transpose(1, 2)
                for t in qkv(x if self.post else first(x)).chunk(3, -1)
            )
            y = out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = first(x + y) if self.post else x + y
            x = second(x + down(F.gelu(up(x)))) if self.post else x + down(F.gelu(up(second(x))))
        return (self.last(x)[:, -1] * self.items(item)).sum(1)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(30, (rows, STEPS), generator=rng), torch.randint(30, (rows,), generator=rng)


def read(model: nn.Module) -> Program:
    return capture(Program.read(model.eval(), batch(64)))


@pytest.mark.parametrize("last", [True, False])
def test_all_columns_are_exact(last: bool) -> None:
    model = Tower(last)
    gm = named(read(model).model)  # type: ignore[arg-type]  # captured
    (stream,) = streams(gm)
    assert (len(stream.norms), len(stream.writers), stream.turns, stream.reason) == (4 + last, 4, 2, "")
    rows = [torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(k)) for k in range(4 + last)]
    basis, kept = basis_of_stream(rows, [0.01] * len(rows), WIDTH)
    assert torch.allclose(basis.t() @ basis, torch.eye(WIDTH, dtype=torch.float64), atol=1e-12)
    assert kept == pytest.approx(1)
    turn(gm, stream, basis)
    sweep(gm)
    for size in (1, 7):
        given = batch(size, 3)
        (right,) = double(model, "forward", given)
        assert torch.allclose(gm(*given)[0].double(), right, atol=1e-4 * float(right.abs().max() + 1))


def test_unused_columns_are_cut() -> None:
    """A stream in 11 of 24 columns, and its mean, is served in 12; a row's answer is its own, before and after fusion."""
    model = Tower(used=USED)
    program = read(model)
    applied = RotateTowers(0.5, least=0).apply(program)
    assert [change.site for change in applied.changes] == ["layer_norm"]
    assert "width 24 -> 12" in applied.changes[0].detail
    given = batch(9, 5)
    (right,) = double(model, "forward", given)
    turned = program.with_model(applied.model)
    assert RotateTowers(0.5, least=0).apply(turned).changes == ()
    for found in (applied.model, Fuse().apply(turned).model):
        whole = found(*given)[0]
        # The mean takes one column, which is not among those that are used.
        assert torch.allclose(whole.double(), right, atol=2e-4 * float(right.abs().max()))
        alone = torch.cat([found(given[0][i : i + 1], given[1][i : i + 1])[0] for i in range(9)])
        assert torch.allclose(whole, alone, atol=1e-5)
        assert (
            max(n.meta["val"].shape[-1] for n in found.graph.nodes if n.name.startswith("layer_norm")) == 12
        )


@torch.no_grad()
def test_cutting_less_loses_less() -> None:
    model = Tower()
    program, given = read(model), batch(64, 8)
    (right,) = flat(model(*given))
    made = RotateTowers(0.5, least=0)
    applied = made.apply(program)
    lost = []
    for step in (made, *made.milder(program, applied.changes)):
        (found,) = step.apply(program).model(*given)
        lost.append(float((found - right).square().mean()))
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.5 * lost[0]


def test_what_stays_says_why() -> None:
    assert "post-norm" in RotateTowers(least=0).apply(read(Tower(post=True))).skipped[0].reason
    program = read(Tower())
    assert "less than 64" in RotateTowers().apply(program).skipped[0].reason
    assert "all of them" in RotateTowers(1.0, least=0).apply(program).skipped[0].reason
    few = capture(Program.read(Tower().eval(), batch(2)))
    assert "are needed" in RotateTowers(0.5, least=0).apply(few).skipped[0].reason
    head = capture(
        Program.read(
            nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1)).eval(), torch.randn(9, 8)
        )
    )
    assert isinstance(head.model, fx.GraphModule)
    assert RotateTowers(least=0).apply(head).skipped == ()


def test_bad_settings_are_named() -> None:
    for settings in ({"keep": 0}, {"keep": 1.5}, {"keep": True}, {"least": -1}):
        with pytest.raises(InputError, match=rf"RotateTowers\({next(iter(settings))}"):
            RotateTowers(**settings)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TechniqueError, match="capture"):
        RotateTowers().apply(Program.read(Tower().eval(), batch(2)))
