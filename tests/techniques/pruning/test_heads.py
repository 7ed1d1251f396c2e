"""PruneHeads: whichever way attention is written, heads that say nothing go and nothing changes; what others cost; what stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import constant
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, PruneHeads, QuantizeLinears
from tests.checks import double

STEPS, HEADS, SIZE = 5, 4, 4
WIDTH = HEADS * SIZE
DEAD = (1, 3)


class Packed(nn.Module):
    """nn.MultiheadAttention, as it computes with and without weights, with batches first or positions first."""

    def __init__(self, first: bool, weights: bool) -> None:
        super().__init__()
        self.first, self.weights = first, weights
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=first)

    def out(self) -> nn.Linear:
        return self.inner.out_proj

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        y: Tensor = self.inner(x, x, x, key_padding_mask=~seen, need_weights=self.weights)[0]
        return y if self.first else y.transpose(0, 1)


class Written(nn.Module):
    """Three maps, or one for keys and values; `how` says how attention itself is written."""

    def __init__(self, how: Callable[..., Tensor], packed: bool = False) -> None:
        super().__init__()
        self.how, self.packed = how, packed
        self.q, self.kv, self.o = (nn.Linear(WIDTH, n * WIDTH) for n in (1, 2, 1))
        self.k, self.v = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, HEADS, STEPS, STEPS))

    def out(self) -> nn.Linear:
        return self.o

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, -1) if self.packed else (self.k(x), self.v(x))
        q, k, v = (t.view(-1, STEPS, HEADS, SIZE).permute(0, 2, 1, 3) for t in (self.q(x), k, v))
        return self.o(self.how(q, k, v, seen, self.bias).transpose(1, 2).reshape(x.shape))


def called(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, seen[:, None, None])


def causal(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)


def by_head(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """A mask that differs from head to head, as relative positions do."""
    return F.scaled_dot_product_attention(q, k, v, torch.where(seen[:, None, None], bias, -1e9))


def written(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    mask = torch.where(seen, 0.0, -1e9)[:, None, None]
    return ((q @ k.transpose(-1, -2)) / 2.0 + mask + bias).softmax(-1) @ v


def filled(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    return (q * 0.5 @ k.transpose(2, 3)).masked_fill(~seen[:, None, None], -1e9).softmax(-1) @ v


def flat(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Heads among the rows, with a view of scores to add a mask."""
    q, k, v = (t.reshape(-1, STEPS, SIZE) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(-1, HEADS, STEPS, STEPS) + bias
    scores = torch.where(seen[:, None, None], scores, -1e9)
    return torch.bmm(scores.view(-1, STEPS, STEPS).softmax(2), v).view(-1, HEADS, STEPS, SIZE)


FORMS: dict[str, Callable[[], Any]] = {
    **{
        f"packed{first:d}{weights:d}": lambda first=first, weights=weights: Packed(first, weights)
        for first, weights in ((True, False), (False, True))
    },
    **{
        how.__name__: lambda how=how: Written(how) for how in (called, causal, by_head, written, filled, flat)
    },
    "keys_and_values": lambda: Written(called, packed=True),
}


class Model(nn.Module):
    """x (N, 5, 16), seen (N, 5) -> (N,): two layers of attention around which rows are added."""

    def __init__(self, form: str, dead: tuple[int, ...] = DEAD) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(FORMS[form]() for _ in range(2))
            self.head = nn.Linear(WIDTH, 1)
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    if "bias" in name:
                        parameter.copy_(0.5 * torch.randn(parameter.shape))
                for layer in self.layers:
                    for head in dead:
                        layer.out().weight[:, head * SIZE : head * SIZE + SIZE] = 0.0  # type: ignore[operator]

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, seen)
        return self.head(x[:, -1]).squeeze(-1)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    seen = torch.rand(rows, STEPS, generator=rng) < 0.7
    seen[:, 0] = True
    return torch.randn(rows, STEPS, WIDTH, generator=rng), seen


def read(model: nn.Module) -> Program:
    program = capture(Program.read(model.eval(), batch(64)))
    return replace(program, calibration=(batch(100, 1), batch(100, 2)))


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.site: skip.reason for skip in applied.skipped}


def off(model: nn.Module, right: Tensor, *given: Tensor) -> float:
    with torch.no_grad():
        new = model(*given)[0].double()
    return float((new - right).norm() / (right - right.mean()).norm())


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_say_nothing_go(form: str) -> None:
    """However attention is written: as the float64 original, with the products of the other heads gone, fused or not."""
    model = Model(form)
    program = read(model)
    applied = PruneHeads(0.5, refit=False).apply(program)
    assert [change.detail[:12] for change in applied.changes] == ["4 heads -> 2"] * 2, applied.skipped
    made = applied.model
    assert isinstance(made, fx.GraphModule)
    widths = {tuple(t.shape) for node in made.graph.nodes if (t := constant(made, node)) is not None}
    assert (WIDTH, 2 * SIZE) in widths
    pruned = program.with_model(made)
    # Each map of a head takes WIDTH products for each of its channels, scores and sums STEPS.
    spared = 2 * STEPS * len(DEAD) * SIZE * (4 * WIDTH + 2 * STEPS)
    assert cost(program, 8).multiply_adds - cost(pruned, 8).multiply_adds == 8 * spared
    fused = Fuse().apply(pruned)
    for size in (1, 33):
        given = batch(size, 7)
        (right,) = double(model, "forward", given)
        for found in (made, fused.model):
            assert torch.allclose(found(*given)[0].double(), right, atol=1e-5)
    assert PruneHeads(0.5).apply(pruned).changes == ()


@pytest.mark.parametrize("form", ["packed10", "written"])
def test_without_refit_it_is_the_original_masked(form: str) -> None:
    """The heads that go are their means over the calibration, in float64."""
    model = Model(form, dead=())
    program = read(model)
    found = PruneHeads(0.75, refit=False)
    applied = found.apply(program)
    assert sum(4 - int(change.detail.partition("-> ")[2][0]) for change in applied.changes) == 2
    left = {change.site: int(change.detail.partition("-> ")[2][0]) for change in applied.changes}
    given = batch(50, 9)

    @torch.no_grad()
    def masked(gone: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
        wide = Model(form, dead=()).double().eval()
        xs = [torch.cat([one[k] for one in program.calibration]) for k in (0, 1)]
        x = xs[0].double()
        for layer, heads in zip(wide.layers, gone, strict=True):
            seen_by: list[Tensor] = []
            out = layer.out()  # type: ignore[operator]
            weight, bias = out.weight.clone(), out.bias.clone()
            # What the map reads is found by asking it for all of it.
            out.weight.copy_(torch.eye(WIDTH))
            out.bias.zero_()
            seen_by.append(layer(x, xs[1]))
            lost = [head * SIZE + k for head in heads for k in range(SIZE)]
            bias = bias + weight[:, lost] @ seen_by[0].flatten(0, 1).mean(0)[lost]
            weight[:, lost] = 0.0
            out.weight.copy_(weight)
            out.bias.copy_(bias)
            x = x + layer(x, xs[1])
        return wide(given[0].double(), given[1])

    if len(left) == 2:
        choices = [((a,), (b,)) for a in range(4) for b in range(4)]
    else:
        pairs = [(a, b) for a in range(4) for b in range(a)]
        choices = [c for pair in pairs for c in ((pair, ()), ((), pair))]
    nearest = min(off(applied.model, masked(gone), *given) for gone in choices)
    assert nearest < 1e-5


def test_refitted_maps_lose_less_and_fewer_heads_more() -> None:
    model = Model("called", dead=())
    program = read(model)
    given = batch(300, 11)
    (right,) = double(model, "forward", given)
    plain, fitted = (PruneHeads(0.5, refit).apply(program) for refit in (False, True))
    assert "refitted" in fitted.changes[0].detail and "refitted" not in plain.changes[0].detail
    assert off(fitted.model, right, *given) < 0.95 * off(plain.model, right, *given)
    mild, milder = PruneHeads(0.5).milder(program, fitted.changes)
    assert isinstance(mild, PruneHeads) and isinstance(milder, PruneHeads)
    assert (mild.keep, milder.keep) == (0.75, 0.875)
    lost = [off(one.apply(program).model, right, *given) for one in (PruneHeads(0.5), mild, milder)]
    assert lost == sorted(lost, reverse=True)
    # What it says is what the calibration shows.
    seen = tuple(torch.cat(parts) for parts in zip(*program.calibration, strict=True))
    (exact,) = double(model, "forward", seen)
    said = float(fitted.changes[-1].detail.rpartition("by ")[2].partition("%")[0]) / 100
    assert off(fitted.model, exact, *seen) == pytest.approx(said, abs=6e-4)


def test_on_through_integers_and_backends() -> None:
    model = Model("packed10")
    program = read(model)
    fused = program.with_model(Fuse().apply(program.with_model(PruneHeads(0.5).apply(program).model)).model)
    integers = program.with_model(QuantizeLinears(least=0).apply(fused).model)
    given = batch(33, 5)
    (right,) = double(model, "forward", given)
    assert off(integers.model, right, *given) < 0.1
    for backend in (Eager(), OnnxRuntime()):
        for one, far in ((fused, 1e-3), (integers, 0.1)):
            (found,) = backend.compile(one)(*given)
            assert float((found.double() - right).norm() / (right - right.mean()).norm()) < far


class Others(nn.Module):
    """Attention that stays: of one head, with shared keys, with keys read elsewhere, with weights that are an answer, without a map."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(16))
        self.narrow = nn.ModuleList(nn.Linear(WIDTH, SIZE) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        return x.view(-1, STEPS, HEADS, SIZE).transpose(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, o, *maps = self.maps
        one = o(F.scaled_dot_product_attention(q(x), k(x), v(x)))
        q, k, v, o, *maps = maps
        shared = [t(x)[:, None].expand(-1, HEADS, -1, -1) for t in self.narrow]
        few = o(F.scaled_dot_product_attention(self.split(q(x)), *shared).transpose(1, 2).flatten(2))
        q, k, v, o, *maps = maps
        keys = k(x)
        tied = F.scaled_dot_product_attention(self.split(q(x)), self.split(keys), self.split(v(x)))
        tied = o(tied.transpose(1, 2).flatten(2)) + keys
        q, k, v, o = maps
        weights = (self.split(q(x)) @ self.split(k(x)).transpose(2, 3)).softmax(-1)
        shown = o((weights @ self.split(v(x))).transpose(1, 2).flatten(2))
        bare = F.scaled_dot_product_attention(*(self.split(t(x)) for t in self.maps[:3])).tanh()
        return one, few, tied, shown, weights, bare


def test_what_stays_has_its_reason() -> None:
    x = torch.randn(32, STEPS, WIDTH, generator=torch.Generator().manual_seed(0))
    program = capture(Program.read(Others().eval(), x))
    applied = PruneHeads(0.5).apply(program)
    assert applied.changes == () and applied.model is program.model
    found = list(reasons(applied).values())
    for words in (
        "one head",
        "its keys are not plain heads",
        "is read by",
        "weights are read",
        "no linear map",
    ):
        assert sum(words in reason for reason in found) == 1, (words, found)
    bad = replace(read(Model("called")), calibration=((batch(8)[0] * float("nan"), batch(8)[1]),))
    assert all("not finite" in reason for reason in reasons(PruneHeads().apply(bad)).values())


def test_settings() -> None:
    program = read(Model("called"))
    with pytest.raises(TechniqueError, match="captured"):
        PruneHeads().apply(Program.read(Model("called").eval(), batch(4)))
    with pytest.raises(InputError, match="no attention of this model: it has scaled_dot_product_attention"):
        PruneHeads(only=("linear",)).apply(program)
    first, second = (change.site for change in PruneHeads(0.5).apply(program).changes)
    assert [c.site for c in PruneHeads(0.5, only=(second,)).apply(program).changes] == [second]
    assert [c.site for c in PruneHeads(0.5, without=(second,)).apply(program).changes] == [first]
    assert "all of them" in reasons(PruneHeads(0.9).apply(program))[""]
    for bad in ({"keep": 0}, {"keep": 1}, {"refit": 1}, {"only": "all"}):
        with pytest.raises(InputError):
            PruneHeads(**bad)  # type: ignore[arg-type]


def test_a_model_without_attention_is_told_so() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    applied = PruneHeads().apply(capture(Program.read(nn.Linear(4, 2).eval(), x)))
    assert applied.changes == ()
    assert reasons(applied) == {"": "no attention between linear maps was found"}
