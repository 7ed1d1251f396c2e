"""8-bit linear maps in ONNX Runtime: that its integer kernel runs, gives the reference's numbers, and sees one row at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import Backend, Eager, OnnxRuntime, OpenVino, onnx_ops
from fastrec.backends.onnx_ops import saturates
from fastrec.errors import BackendError
from fastrec.graph import emit, sweep, value
from fastrec.ops.linears import INT8_LINEAR
from fastrec.program import Program

from .graphs import assert_no_row_sees_another, captured, executed, graph_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Codes(nn.Module):
    """x (N, 40) and bag (N, 5, 40) -> scores: maps of two and three dimensions, with and without a bias, one computed."""

    def __init__(self, width: int = 320) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        for name, (outer, inner) in {"a": (width, 40), "b": (width, width), "c": (7, width)}.items():
            weight = torch.randint(-127, 128, (outer, inner), generator=rng).to(torch.int8)
            # Codes at their ends, where pairs of products pass 16 bits.
            weight[0], weight[1] = 127, -127
            self.register_buffer(f"{name}_codes", weight)
            self.register_buffer(f"{name}_scale", torch.rand(outer, generator=rng) / 800 + 1e-4)
            self.register_buffer(f"{name}_bias", torch.randn(outer, generator=rng))

    def forward(self, x: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        one = INT8_LINEAR(x, self.a_codes, self.a_scale, 0.03, 128, self.a_bias)
        two = INT8_LINEAR(one, self.b_codes, self.b_scale, 0.02, 0)
        # A bias that is computed, of the request.
        three = INT8_LINEAR(two, self.c_codes, self.c_scale, 0.05, 100, torch.sin(self.c_bias))
        return three, INT8_LINEAR(bag, self.a_codes, self.a_scale, 0.03, 120, self.a_bias).sum(1)


def draw(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 40, generator=rng), torch.randn(rows, 5, 40, generator=rng)


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(Codes(), draw(5))


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 33, 1000])
@pytest.mark.parametrize("lookups", ["torch", "session"])
def test_the_numbers_are_those_of_the_reference(program: Program, rows: int, lookups: str) -> None:
    session = OnnxRuntime(lookups=lookups).compile(program)  # type: ignore[arg-type]
    x = draw(rows, rows)
    for got, right in zip(session(*x), graph_of(program)(*x), strict=True):
        assert got.shape == right.shape
        if rows:
            # The sums are the same; scale and bias round in float32, and a code of the next layer may tip over.
            assert float((got - right).abs().max()) <= 2e-5 * float(right.abs().max())


def test_of_one_layer_only_the_last_rounding_differs(program: Program) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes, self.scale = nn.Buffer(Codes().b_codes), nn.Buffer(Codes().b_scale)

        def forward(self, x: Tensor) -> Tensor:
            return INT8_LINEAR(x, self.codes, self.scale, 0.03, 131)

    one = captured(One(), (torch.randn(5, 320),))
    x = torch.randn(500, 320, generator=torch.Generator().manual_seed(3)) * 3
    # Values half way between two codes among them.
    x[:100] = (torch.randint(-300, 300, (100, 320)) + 0.5) * 0.03
    (got,), (right,) = OnnxRuntime().compile(one)(x), graph_of(one)(x)
    step = 0.03 * Codes().b_scale * 127
    assert ((got - right).abs() <= step + 1e-6 * right.abs()).all()
    assert float((got - right).abs().max()) <= 4e-7 * float(right.abs().max())


def test_the_integer_kernel_is_what_runs(program: Program, tmp_path: Path) -> None:
    optimised, ran = executed(program, tmp_path, *draw(9))
    assert ran["MatMulIntegerToFloat"] == 4 and ran["QuantizeLinear"] == 4
    # No float product, no weight made float, and none turned at run time.
    assert not {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "DequantizeLinear", "Transpose", "Cast"} & set(
        ran
    )
    assert {node.op_type for node in optimised.graph.node} == set(ran)


def test_weights_are_unsigned_where_signed_ones_saturate(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(model: onnx.ModelProto) -> set[int]:
        return {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}

    monkeypatch.setattr(onnx_ops, "saturates", lambda: False)
    signed, _ = executed(program, tmp_path, *draw(9))
    assert kinds(signed) == {onnx.TensorProto.INT8}
    monkeypatch.setattr(onnx_ops, "saturates", lambda: True)
    unsigned, ran = executed(program, tmp_path, *draw(9))
    assert kinds(unsigned) == {onnx.TensorProto.UINT8}
    # Shifted as the session was loaded, not in each call.
    assert set(ran) & {"Cast", "Add", "Transpose"} == set() and ran["MatMulIntegerToFloat"] == 4
    right = graph_of(program)(*draw(50))
    for got, expected in zip(OnnxRuntime().compile(program)(*draw(50)), right, strict=True):
        assert float((got - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


def test_whether_it_saturates_is_what_a_product_at_the_limit_says() -> None:
    assert saturates() is saturates()
    if not saturates():
        one = captured(_Limit(), (torch.ones(2, 64),))
        assert torch.equal(
            OnnxRuntime().compile(one)(torch.ones(2, 64))[0], torch.full((2, 16), 64.0 * 127 * 255)
        )


class _Limit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Buffer(torch.full((16, 64), 127, dtype=torch.int8))
        self.scale = nn.Buffer(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return INT8_LINEAR(x * 255, self.codes, self.scale, 1.0, 0)


@pytest.mark.parametrize(
    "backend", [Eager(), OnnxRuntime(lookups="torch"), OnnxRuntime(lookups="session")], ids=lambda b: b.label
)
def test_a_row_depends_on_no_other(program: Program, backend: Backend) -> None:
    session = backend.compile(program)
    x = draw(300, 4)
    for tensor in x:
        tensor[7], tensor[11], tensor[12] = 1e3, 1e30, -1e30
    assert_no_row_sees_another(session, x)
    # The same rows without those far out beside them.
    kept = torch.tensor([k for k in range(300) if k not in (7, 11, 12)])
    for alone, all_ in zip(session(*(t[kept] for t in x)), session(*x), strict=True):
        assert torch.equal(alone, all_[kept])


@pytest.mark.parametrize(
    "backend", [OpenVino(lookups="torch"), OpenVino(lookups="session")], ids=lambda b: b.label
)
def test_who_has_no_kernel_says_so(program: Program, backend: Backend) -> None:
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    with pytest.raises(
        BackendError, match=r"no kernel for fastrec::int8_linear \(at int8_linear.*onnxruntime"
    ) as caught:
        backend.compile(program)
    assert caught.value.backend == backend.name


def test_a_bias_of_one_row(program: Program) -> None:
    """A bias (1, O) is one of (O,): `linear` takes both, and so does the operator."""
    gm = captured(Codes(), draw(5)).model
    assert isinstance(gm, fx.GraphModule)
    for node in list(gm.graph.nodes):
        if node.target is INT8_LINEAR and len(node.args) > 5:
            with gm.graph.inserting_before(node):
                row = emit(gm, torch.ops.aten.unsqueeze.default, (node.args[5], 0))
            assert tuple(value(row).shape) == (1, len(value(node.args[5])))
            node.args = (*node.args[:5], row)
    sweep(gm)
    session = OnnxRuntime().compile(replace(program, model=gm))
    for got, right in zip(session(*draw(9)), graph_of(program)(*draw(9)), strict=True):
        assert float((got - right).abs().max()) <= 2e-5 * float(right.abs().max())
