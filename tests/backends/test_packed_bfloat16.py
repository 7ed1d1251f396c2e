"""Packed maps give what `aten.linear` gives in bfloat16, and a row its answer whatever rows are beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.backends import Backend, Eager, Inductor, OnnxRuntime, OpenVino, packed_bfloat16
from fastrec.backends.packed_bfloat16 import bfloat16_linear, pack_bfloat16
from fastrec.errors import BackendError
from fastrec.graph import is_call
from fastrec.program import Program
from fastrec.techniques import CastLinears

from .graphs import captured

aten = torch.ops.aten
# Narrow and wide, odd, and so long that oneDNN adds up a single row in parts of its own.
SHAPES = [(1, 300), (3, 1000), (17, 33), (96, 40), (400, 429), (256, 4096), (1000, 2000)]
ROWS = (1, 2, 3, 5, 8, 16, 31, 100, 299)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(packed_bfloat16._RUN is None, reason="this torch has no packed products"),
]


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 are right on any processor, only not quick."""
    monkeypatch.setattr(CastLinears, "missing", lambda self: "")


# Tiles add up the rows of a batch by how many there are: a session says by how much, and only the last bits differ.
by_row = pytest.mark.skipif(
    bool(torch.cpu.get_capabilities().get("amx_bf16")),
    reason="tiles of bfloat16 add up by the number of rows",
)


class Tower(nn.Module):
    """x (N, I) -> (N, 2): maps with ReLU between, the last in float32."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inner, width), nn.Linear(width, 48)
        self.head = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def cancelling(rows: int, width: int, inner: int) -> tuple[Tensor, Tensor]:
    """x (N, I) and W (O, I) in bfloat16 whose products are 0, but for the rounding of the order they are added up in."""
    rng = torch.Generator().manual_seed(inner)
    order = torch.randperm(inner // 2, generator=rng)
    left, x = (torch.randn(n, inner // 2, generator=rng).bfloat16() for n in (width, rows))
    odd = torch.zeros(1, inner % 2, dtype=torch.bfloat16)
    return (
        torch.cat([x, -x[:, order], odd.expand(rows, -1)], 1),
        torch.cat([left, left[:, order], odd.expand(width, -1)], 1),
    )


def cast(inner: int, width: int, seed: int = 0) -> tuple[Program, Tower]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Tower(inner, width).eval()
    program = captured(model, (torch.randn(9, inner, generator=torch.Generator().manual_seed(1)),))
    applied = CastLinears(least=256).apply(program)
    assert [change.site for change in applied.changes] == ["linear", "linear_1"]
    return program.with_model(applied.model), model


def map_of(weight: Tensor, bias: bool = False) -> Program:
    """A map by this bfloat16 weight, as a captured program in float32, its operands cast."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).eval()
    model.weight.data = weight.float()
    program = captured(model, (torch.ones(4, weight.shape[1]),))
    return program.with_model(CastLinears(least=0, only=("linear",)).apply(program).model)


@by_row
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_row_is_added_up_otherwise_among_others(shape: tuple[int, int]) -> None:
    x, weight = cancelling(300, *shape)
    gm, size = pack_bfloat16(_graph(map_of(weight)))
    (node,) = [node for node in gm.graph.nodes if node.target is bfloat16_linear]
    held = [gm.get_buffer(node.args[1].target), *node.args[2:]]
    assert size == weight.nbytes
    together = bfloat16_linear(x, *held)
    assert float(together.float().abs().max()) > 0
    for rows in ROWS:
        assert torch.equal(torch.cat([bfloat16_linear(part, *held) for part in x.split(rows)]), together), (
            rows
        )
    beside = x.clone()
    beside[1::2] = 1e30
    assert torch.equal(bfloat16_linear(beside, *held)[::2], together[::2])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    assert torch.equal(bfloat16_linear(x[order], *held), together[order])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (5, 3), (2, 0, 4)])
@pytest.mark.parametrize("wide", [16, 3000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_map(shape: tuple[int, ...], wide: int, with_bias: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    weight = (torch.randn(7, wide, generator=rng) / wide**0.5).bfloat16()
    bias = torch.randn(7, generator=rng).bfloat16() if with_bias else None
    assert packed_bfloat16._PACK is not None
    held = (
        packed_bfloat16._PACK(weight),
        bias,
        7,
        packed_bfloat16._is_alike(7, wide, torch.get_num_threads()),
    )
    x = torch.randn(*shape, wide, generator=rng).bfloat16()
    right = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    got = bfloat16_linear(x, *held)
    assert got.dtype is torch.bfloat16
    # One rounding of a sum in float32.
    torch.testing.assert_close(got.double(), right, rtol=2**-8, atol=1e-6)
    strided = x.expand(2, *x.shape).movedim(0, -2)
    torch.testing.assert_close(bfloat16_linear(strided, *held)[..., 0, :], got, rtol=0, atol=0)


@pytest.mark.parametrize("inner", [64, 2000])
def test_the_graph_it_was_given_stays_and_a_shared_weight_is_packed_once(inner: int) -> None:
    program, _ = cast(inner, 80)
    gm = _graph(program)
    code = gm.code
    made, size = pack_bfloat16(gm)
    assert gm.code == code and made is not gm
    assert sum(node.target is bfloat16_linear for node in made.graph.nodes) == 2
    assert not any(
        is_call(node, aten.linear.default) and node.meta["val"].dtype is torch.bfloat16
        for node in made.graph.nodes
    )
    assert size == 2 * (inner * 80 + 80 * 48) == Eager().compile(program).resident_bytes


def test_what_has_no_such_maps_or_no_kernels_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    program, model = cast(64, 80)
    plain = captured(model, (torch.ones(4, 64),))
    assert pack_bfloat16(_graph(plain)) == (plain.model, 0)
    monkeypatch.setattr(packed_bfloat16, "_PACK", None)
    assert pack_bfloat16(_graph(program)) == (program.model, 0)
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(Eager().compile(program)(x)[0], program.model(x)[0])


@pytest.mark.parametrize("backend", [Eager(), OpenVino()], ids=lambda b: b.label)
@pytest.mark.parametrize("inner", [64, 2000])
def test_sessions_give_the_plain_form_and_a_row_its_own_answer(backend: Backend, inner: int) -> None:
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program, model = cast(inner, 80, seed=3)
    session = backend.compile(program)
    x = torch.randn(300, inner, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = program.model(x)[0]
        exact = copy.deepcopy(model).double()(x.double())
    together = session(x)[0]
    lost = float((plain - exact).abs().max())
    assert float((together - plain).abs().max()) < 0.2 * lost < 0.01
    x[5], x[6] = 1e3, 1e30
    together = session(x)[0]
    spread = float(together[[*range(5), *range(7, 300)]].std())
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        order = torch.randperm(300, generator=rng)
        parts = order.split(int(torch.randint(1, 200, (), generator=rng)))
        got = torch.cat([session(x[part])[0] for part in parts])
        # The head is in float32, whose kernels may round a few rows in another order; what was cast may not flip.
        scale = together[order].abs().clamp(min=spread)
        tiles = torch.cpu.get_capabilities().get("amx_bf16")
        assert float(((got - together[order]).abs() / scale).max()) < (2e-2 if tiles else 2e-6)


@by_row
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_openvino_adds_up_each_row_alike(shape: tuple[int, int]) -> None:
    backend = OpenVino()
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    x, weight = cancelling(300, *shape)
    session = backend.compile(map_of(weight))
    together = session(x.float())[0]
    for rows in ROWS:
        assert torch.equal(torch.cat([session(part.float())[0] for part in x.split(rows)]), together), rows


def test_openvino_runs_them_in_bfloat16_and_the_rest_in_float32() -> None:
    backend = OpenVino()
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("elsewhere OpenVINO may compute in float32 after all")
    session = backend.compile(cast(64, 80)[0])
    model = session._model.get_runtime_model()  # type: ignore[attr-defined]
    ran = [
        info["runtimePrecision"].astype(str)
        for info in (op.get_rt_info() for op in model.get_ordered_ops())
        if "layerType" in info and info["layerType"].astype(str) == "FullyConnected"
    ]
    assert sorted(ran) == ["bf16", "bf16", "f32"]


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (OnnxRuntime(), "no products in bfloat16"),
        (OnnxRuntime(lookups="session"), "no products in bfloat16"),
        (Inductor(), "one row in another order"),
    ],
    ids=lambda one: one.label if isinstance(one, Backend) else "",
)
def test_who_has_no_kernel_says_so(backend: Backend, why: str) -> None:
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    with pytest.raises(BackendError, match=rf"{why}.*\(at linear.*\).*eager and openvino") as caught:
        backend.compile(cast(64, 80)[0])
    assert caught.value.backend == backend.name


def _graph(program: Program) -> fx.GraphModule:
    assert isinstance(program.model, fx.GraphModule)
    return program.model
