"""8-bit convolutions in ONNX Runtime: that its integer kernel runs, gives the reference's numbers bit for bit, and sees one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.backends import Backend, Eager, Inductor, OnnxRuntime, OpenVino, onnx_convolutions
from fastrec.backends.onnx_convolutions import saturates
from fastrec.errors import BackendError
from fastrec.ops.convolutions import INT8_CONVOLUTION
from fastrec.program import Program

from .graphs import assert_no_row_sees_another, captured, executed, graph_of

pytestmark = pytest.mark.usefixtures("one_thread")

SAME: tuple[Any, ...] = ([1, 1], [1, 1, 1, 1], [1, 1])


class Codes(nn.Module):
    """Pictures (N, 5, 9, 8) and rows (N, 6, 12) -> maps: strides, gaps, uneven padding, groups, a chain, a sum around it."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        shapes = {
            "a": (32, 5, 3, 3),
            "b": (32, 1, 3, 3),
            "c": (32, 32, 3, 2),
            "d": (10, 6, 4),
            "e": (6, 64, 1, 1),
        }
        for name, shape in shapes.items():
            weight = torch.randint(-127, 128, shape, generator=rng).to(torch.int8)
            # Codes at their ends, where pairs of products pass 16 bits.
            weight[0], weight[1] = 127, -127
            self.register_buffer(f"{name}_codes", weight)
            self.register_buffer(f"{name}_scale", torch.rand(shape[0], generator=rng) / 800 + 1e-4)
            bias = torch.randint(-(2**13), 2**13, shape[:1], generator=rng).to(torch.int32)
            bias[2] = 2**30
            self.register_buffer(f"{name}_bias", bias)

    def layer(self, name: str, x: Tensor, *numbers: Any) -> Tensor:
        held = (getattr(self, f"{name}_{part}") for part in ("codes", "scale", "bias"))
        return INT8_CONVOLUTION(x, *held, *numbers)

    def forward(self, x: Tensor, line: Tensor) -> tuple[Tensor, ...]:
        y = self.layer("a", x, 0.03, 128, 0.02, 0, *SAME, 1)
        # The second takes in what the first gives, the third by another range.
        y = self.layer("b", y, 0.02, 0, 0.05, 30, *SAME, 32)
        y = y + self.layer("c", y, 0.04, 131, 0.06, 111, [1, 1], [2, 0, 2, 1], [2, 1], 1)
        y = self.layer("e", torch.cat([y, y.relu()], 1), 0.07, 77, 0.1, 131, [2, 2], [0, 0, 0, 0], [1, 1], 1)
        return (
            y,
            self.layer("d", line, 0.03, 120, 0.05, 9, [1], [1, 2], [1], 1),
            F.max_pool2d(y, 2).flatten(1),
        )


def draw(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, 9, 8, generator=rng), torch.randn(rows, 6, 12, generator=rng)


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(Codes(), draw(5))


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 33, 1000])
@pytest.mark.parametrize("lookups", ["torch", "session"])
def test_the_numbers_are_those_of_the_reference(program: Program, rows: int, lookups: str) -> None:
    session = OnnxRuntime(lookups=lookups).compile(program)  # type: ignore[arg-type]
    x = draw(rows, rows)
    for got, right in zip(session(*x), graph_of(program)(*x), strict=True):
        assert torch.equal(got, right)


def test_the_integer_kernel_is_what_runs(program: Program, tmp_path: Path) -> None:
    optimised, ran = executed(program, tmp_path, *draw(9))
    assert ran["QLinearConv"] == 5
    # No float convolution, no sums in integers that are scaled afterwards, no weight made float or shifted at run time.
    assert not {"Conv", "FusedConv", "ConvInteger", "Cast", "Mul"} & set(ran)
    assert {node.op_type for node in optimised.graph.node} == set(ran)


def test_codes_go_from_one_to_the_next(tmp_path: Path) -> None:
    class Chain(Codes):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one input of the two
            y = self.layer("a", x, 0.03, 128, 0.02, 0, *SAME, 1)
            y = self.layer("b", y, 0.02, 0, 0.05, 30, *SAME, 32)
            return self.layer("c", y, 0.05, 30, 0.06, 111, *SAME, 1)

    x = draw(9)[0]
    _, ran = executed(captured(Chain(), (x,)), tmp_path, x)
    assert ran == {"QuantizeLinear": 1, "QLinearConv": 3, "DequantizeLinear": 1, "Transpose": 2}


def test_what_stands_between_in_floats_stays_in_floats(tmp_path: Path) -> None:
    class Mixed(Codes):
        def __init__(self) -> None:
            super().__init__()
            self.between = nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one input of the two
            y = self.layer("a", x, 0.03, 128, 0.02, 0, *SAME, 1)
            y = self.between(y) + y
            return self.layer("b", y, 0.02, 100, 0.05, 30, *SAME, 32)

    torch.manual_seed(0)
    x = draw(9)[0]
    _, ran = executed(captured(Mixed(), (x,)), tmp_path, x)
    assert ran["QLinearConv"] == 2 and ran["Conv"] + ran["FusedConv"] == 1 and not ran["QLinearAdd"]


def test_weights_are_unsigned_where_signed_ones_saturate(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(model: onnx.ModelProto) -> set[int]:
        return {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 2}

    monkeypatch.setattr(onnx_convolutions, "saturates", lambda: False)
    signed, _ = executed(program, tmp_path, *draw(9))
    assert kinds(signed) == {onnx.TensorProto.INT8}
    monkeypatch.setattr(onnx_convolutions, "saturates", lambda: True)
    unsigned, ran = executed(program, tmp_path, *draw(9))
    assert kinds(unsigned) == {onnx.TensorProto.UINT8}
    # Shifted as the session was loaded, not in each call.
    assert "Cast" not in ran and ran["QLinearConv"] == 5 and ran["Add"] == 1
    for got, right in zip(
        OnnxRuntime().compile(program)(*draw(50)), graph_of(program)(*draw(50)), strict=True
    ):
        assert torch.equal(got, right)


def test_whether_it_saturates_is_what_a_convolution_at_the_limit_says() -> None:
    assert saturates() is saturates()
    if not saturates():
        one = captured(_Limit(), (torch.ones(2, 64, 3, 3),))
        (got,) = OnnxRuntime().compile(one)(torch.ones(2, 64, 3, 3))
        assert torch.equal(got, torch.full((2, 16, 3, 3), 127.0 * 2**14))


class _Limit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes, self.scale = (
            nn.Buffer(torch.full((16, 64, 1, 1), 127, dtype=torch.int8)),
            nn.Buffer(torch.ones(16)),
        )
        self.bias = nn.Buffer(torch.zeros(16, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        numbers = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
        return INT8_CONVOLUTION(x * 255, self.codes, self.scale, self.bias, 1.0, 0, float(2**14), 0, *numbers)


@pytest.mark.parametrize(
    "backend", [Eager(), OnnxRuntime(lookups="torch"), OnnxRuntime(lookups="session")], ids=lambda b: b.label
)
def test_a_row_depends_on_no_other(program: Program, backend: Backend) -> None:
    session = backend.compile(program)
    x = draw(100, 4)
    for tensor in x:
        tensor[7], tensor[11], tensor[12] = 1e3, 1e30, -1e30
    assert_no_row_sees_another(session, x)


@pytest.mark.parametrize(
    "backend", [OpenVino(lookups="torch"), OpenVino(lookups="session"), Inductor()], ids=lambda b: b.label
)
def test_who_has_no_kernel_says_so(program: Program, backend: Backend) -> None:
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    with pytest.raises(
        BackendError,
        match=r"no kernel for fastrec::int8_convolution \(at int8_convolution.*onnxruntime, and slowly in eager",
    ) as caught:
        backend.compile(program)
    assert caught.value.backend == backend.name
    assert Eager().plain(program) and not backend.plain(program)
