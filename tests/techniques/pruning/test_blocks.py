"""DropBlocks: what a block is, what stands in for it, which go first, and what stays with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.errors import InputError, TechniqueError
from fastrec.program import Program
from fastrec.techniques import Applied, DropBlocks, Fuse, QuantizeLinears

STEPS, WIDTH = 6, 16


class Tower(nn.Module):
    """x (N, 6, 16) -> (N,): three layers of attention and feed-forward parts, the parts of each layer this far from nothing."""

    def __init__(self, post: bool = False, parts: tuple[float, ...] = (1, 1, 1, 1, 1, 1)) -> None:
        super().__init__()
        self.post, self.parts = post, parts
        rng = torch.Generator().manual_seed(0)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 32) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(32, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(6))
        self.head = nn.Linear(WIDTH, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
            for norm in self.norms:
                norm.weight.add_(1.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for i, (qkv, up, down) in enumerate(zip(self.qkv, self.up, self.down, strict=True)):
            first, second = self.norms[2 * i], self.norms[2 * i + 1]
            q, k, v = qkv(x if self.post else first(x)).chunk(3, -1)
            y = self.parts[2 * i] * F.scaled_dot_product_attention(q, k, v, mask[:, None])
            x = first(x + y) if self.post else y + x
            z = self.parts[2 * i + 1] * down(F.gelu(up(x if self.post else second(x))))
            x = second(x + z) if self.post else x + z
        return self.head(x.mean(1)).squeeze(-1)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    seen = torch.rand(rows, STEPS, generator=rng) < 0.7
    seen[:, 0] = True
    return torch.randn(rows, STEPS, WIDTH, generator=rng), seen


def read(model: nn.Module, *given: Tensor) -> Program:
    program = capture(Program.read(model.eval(), given or batch(64)))
    return replace(program, calibration=(given or batch(200, 1),))


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.site: skip.reason for skip in applied.skipped}


def off(model: nn.Module, right: nn.Module, *given: Tensor) -> float:
    with torch.no_grad():
        new, old = model(*given)[0].flatten(), right(*given).flatten()
    return float((new - old).norm() / (old - old.mean()).norm())


@pytest.mark.parametrize("post", [False, True])
def test_blocks_that_add_nothing_go_first_and_are_not_missed(post: bool) -> None:
    """Normed before or after; what is left is the model without them, through fusion, integers and ONNX Runtime."""
    model = Tower(post, (1, 0, 1, 0, 0, 1))
    program = read(model)
    applied = DropBlocks(3, "mean").apply(program)
    made = applied.model
    assert len(applied.changes) == 3 and isinstance(made, fx.GraphModule)
    assert all("move by 0.0%" in change.detail for change in applied.changes)
    assert sum(node.name.startswith("scaled_dot") for node in made.graph.nodes) == 2
    assert sum(node.name.startswith("gelu") for node in made.graph.nodes) == 1
    given = batch(33, 5)
    assert off(made, model, *given) < 1e-5
    dropped = program.with_model(made)
    assert off(Fuse().apply(dropped).model, model, *given) < 1e-5
    # Applied to its own result it finds nothing more.
    again = DropBlocks(3, "mean").apply(dropped)
    assert again.changes == () and "dropped already" in reasons(again)[""]


def test_on_through_integers_and_backends() -> None:
    model = Tower(False, (1, 0, 1, 0, 0, 1))
    program = read(model)
    fused = program.with_model(Fuse().apply(program.with_model(DropBlocks(3).apply(program).model)).model)
    integers = program.with_model(QuantizeLinears(least=0).apply(fused).model)
    given = batch(33, 5)
    with torch.no_grad():
        right = model(*given)
    for backend in (Eager(), OnnxRuntime()):
        for one, far in ((fused, 0.01), (integers, 0.1)):
            (found,) = backend.compile(one)(*given)
            assert float((found - right).norm() / (right - right.mean()).norm()) < far


class Linear(nn.Module):
    """x (N, 12) -> x + s * x + c, or x + V x + c, written as a part with a hidden layer of 40; other parts beside x."""

    def __init__(self, dense: bool, others: bool) -> None:
        super().__init__()
        self.others = others
        rng = torch.Generator().manual_seed(2)
        self.up, self.down, self.side = nn.Linear(12, 40), nn.Linear(40, 12), nn.Linear(12, 12)
        with torch.no_grad():
            basis = torch.linalg.qr(torch.randn(40, 12, generator=rng)).Q
            self.up.weight.copy_(basis)
            self.up.bias.zero_()
            inner = torch.randn(12, 12, generator=rng) if dense else torch.randn(12, generator=rng).diag()
            self.down.weight.copy_(inner @ basis.t())

    def forward(self, x: Tensor) -> Tensor:
        f = self.down(self.up(x))
        return (x + self.side(x).tanh()) + f if self.others else x + f


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(("dense", "kind"), [(False, "scale"), (True, "linear")])
def test_a_stand_in_is_what_the_block_was(dense: bool, kind: str, others: bool) -> None:
    model = Linear(dense, others)
    rng = torch.Generator().manual_seed(3)
    program = read(model, torch.randn(400, 12, generator=rng) + 1)
    site = "add_1" if others else "add"
    applied = DropBlocks(1, kind, only=(site,)).apply(program)  # type: ignore[arg-type]  # one of its words
    assert [change.site for change in applied.changes] == [site]
    assert off(applied.model, model, torch.randn(50, 12, generator=rng)) < 0.01
    assert cost(program.with_model(applied.model), 8).multiply_adds == 8 * 144 * (dense + others)


def test_the_answer_moves_as_said_and_less_where_less_is_dropped() -> None:
    model = Tower(parts=(0.2, 0.02, 0.1, 0.05, 0.1, 0.2))
    program = read(model)
    strong = DropBlocks(0.9, "scale")
    applied = strong.apply(program)
    assert len(applied.changes) == 5
    said = [float(change.detail.rpartition("by ")[2].rstrip("%")) / 100 for change in applied.changes]
    assert off(applied.model, model, *batch(200, 1)) == pytest.approx(said[-1], abs=6e-4)
    counts = [one.drop for one in strong.milder(program, applied.changes) if isinstance(one, DropBlocks)]
    assert counts == [2, 1]
    for count in counts:
        fewer = replace(strong, drop=count).apply(program)
        assert fewer.changes == applied.changes[:count]
    # The first to go is the one that says least.
    alone = {
        name: DropBlocks(1, only=(name,)).apply(program).changes[0].detail
        for name in (change.site for change in applied.changes)
    }
    moved = {name: float(detail.rpartition("by ")[2].rstrip("%")) for name, detail in alone.items()}
    assert min(moved, key=lambda name: moved[name]) == applied.changes[0].site


def test_a_linear_map_is_nearer_than_a_scale_than_a_mean() -> None:
    model = Tower(parts=(1, 1, 1, 1, 1, 0.5))
    program = read(model)
    last = [node.name for node in program.model.graph.nodes if node.name.startswith("add")][-1]  # type: ignore[union-attr]
    found = [
        off(DropBlocks(1, kind, only=(last,)).apply(program).model, model, *batch(200, 1))
        for kind in ("linear", "scale", "mean")
    ]
    assert found == sorted(found) and found[0] < 0.7 * found[-1]


class Cross(nn.Module):
    """x (N, 10) -> x0 * (W x + b) + x, the sum written either way round."""

    def __init__(self, size: float = 0.1) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.first(x) + x
        z = y + self.second(y) * x
        return self.head(z)


def test_layers_of_a_cross_network_are_blocks() -> None:
    program = read(Cross(), torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))
    applied = DropBlocks(2, "mean").apply(program)
    assert {change.site for change in applied.changes} == {"add", "add_1"}


class Convolved(nn.Module):
    """x (N, 8, 20) -> x + conv(x): channels come before positions; each has a mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shift = nn.Conv1d(8, 8, 3, padding=1), torch.arange(8.0)

    def forward(self, x: Tensor) -> Tensor:
        y = 1e-3 * self.conv(x) + self.shift[:, None]
        return x + y


@pytest.mark.parametrize("kind", ["mean", "scale", "linear"])
def test_channels_of_a_convolution(kind: str) -> None:
    model = Convolved()
    program = read(model, torch.randn(64, 8, 20, generator=torch.Generator().manual_seed(0)))
    made = DropBlocks(1, kind).apply(program)  # type: ignore[arg-type]  # one of its words
    assert made.changes and off(made.model, model, torch.randn(3, 8, 20)) < 0.02


class Stays(nn.Module):
    """Sums that are no blocks, or must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.a(x).relu()
        y = x + self.b(seen)
        one = y[:, :1]
        broadcast = one + self.b(one.expand(-1, 8))
        return self.c(x) + self.a(x) + broadcast, seen


def test_what_stays_has_its_reason() -> None:
    rng = torch.Generator().manual_seed(0)
    few = DropBlocks(5, "mean").apply(read(Linear(False, False), torch.randn(3, 12, generator=rng)))
    assert "3 rows, for this stand-in 4 are needed" in reasons(few)["add"]
    program = read(Cross(4.0), torch.randn(64, 10, generator=rng))
    far = DropBlocks(2).apply(program)
    assert far.changes == () and far.model is program.model
    assert "off without it" in next(iter(reasons(far).values()))
    bad = replace(program, calibration=((torch.full((64, 10), float("nan")),),))
    assert "not finite" in reasons(DropBlocks().apply(bad))["add"]
    applied = DropBlocks(5).apply(read(Stays(), torch.randn(32, 8, generator=rng)))
    found = list(reasons(applied).values())
    assert applied.changes == () and len(found) == 2
    assert "read outside it, by" in found[0]
    assert "not of the shape" in found[1]


def test_the_next_cheaper_stand_in_where_one_saves_nothing() -> None:
    program = read(Cross(), torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))
    assert "a scale and a shift" in DropBlocks(1, "linear").apply(program).changes[0].detail
    assert "the mean" in DropBlocks(1, "mean").apply(program).changes[0].detail


def test_settings() -> None:
    with pytest.raises(TechniqueError, match="captured"):
        DropBlocks().apply(Program.read(Cross().eval(), torch.randn(4, 10)))
    program = read(Cross(), torch.randn(64, 10))
    with pytest.raises(InputError, match="no block of this model: it has add, add_1"):
        DropBlocks(only=("linear",)).apply(program)
    assert DropBlocks(2, without=("add", "add_1")).apply(program).changes == ()
    for bad in ({"drop": 0}, {"drop": 1.5}, {"drop": True}, {"stand_in": "none"}, {"without": "add"}):
        with pytest.raises(InputError):
            DropBlocks(**bad)  # type: ignore[arg-type]


def test_a_model_without_blocks_is_told_so() -> None:
    applied = DropBlocks().apply(read(nn.Linear(10, 2), torch.randn(8, 10)))
    assert applied.changes == () and reasons(applied) == {"": "no residual block was found"}
