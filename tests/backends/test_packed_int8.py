"""Eager sessions run 8-bit linear maps packed, and as they are where the kernel does not stand for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrec.backends import Eager, packed_int8
from fastrec.backends.packed_bfloat16 import bfloat16_linear, pack_bfloat16
from fastrec.backends.packed_int8 import pack_int8
from fastrec.ops.linears import INT8_LINEAR
from fastrec.ops.packed_linears import PackedLinear, pack, packed_linear
from fastrec.program import Program
from fastrec.techniques import CastLinears, QuantizeLinears

from .graphs import CASES, captured, graph_of, program_of, skip_unless_packed
from .test_onnx_ops import Codes, draw


@pytest.fixture(scope="module")
def program() -> Program:
    made = captured(Codes(), draw(5))
    skip_unless_packed(graph_of(made))
    return made


def test_every_map_is_packed_and_the_graph_left(program: Program) -> None:
    gm = graph_of(program)
    code = gm.code
    made, size = pack_int8(gm)
    targets = [node.target for node in made.graph.nodes]
    assert targets.count(packed_linear) == 4 and INT8_LINEAR not in targets
    assert gm.code == code and not any(isinstance(held, PackedLinear) for held in vars(gm).values())
    held = (gm.get_buffer(f"model.{name}_codes") for name in "aabc")
    assert size >= sum(codes.nbytes for codes in held)
    assert Eager().compile(program).resident_bytes == size and not Eager().plain(program)


def test_a_graph_without_such_maps_is_itself() -> None:
    gm = graph_of(program_of(CASES[0])[0])
    assert pack_int8(gm) == (gm, 0) and Eager().compile(program_of(CASES[0])[0]).resident_bytes == 0


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 33, 1000])
def test_the_numbers_are_those_of_the_reference(program: Program, rows: int) -> None:
    x = draw(rows, rows)
    for got, right in zip(Eager().compile(program)(*x), graph_of(program)(*x), strict=True):
        assert got.shape == right.shape
        if rows:
            # The sums are the same; scale and bias round in float32, and a code of the next layer may tip over.
            assert float((got - right).abs().max()) <= 2e-5 * float(right.abs().max())


def test_what_the_kernel_does_not_stand_for_stays(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    gm = graph_of(program)

    def refusing(weight: Tensor, scale: Tensor, step: float, zero: int) -> PackedLinear | str:
        return "saturates" if len(weight) == 320 else pack(weight, scale, step, zero)

    monkeypatch.setattr(packed_int8, "pack", refusing)
    targets = [node.target for node in pack_int8(gm)[0].graph.nodes]
    assert targets.count(packed_linear) == 1 and targets.count(INT8_LINEAR) == 3
    monkeypatch.setattr(packed_int8, "pack", lambda *_: "saturates")
    assert pack_int8(gm) == (gm, 0)
    x = draw(9)
    assert all(map(torch.equal, Eager().compile(program)(*x), gm(*x)))


def test_a_weight_that_is_computed_stays() -> None:
    class Computed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes, self.scale = torch.nn.Buffer(Codes().a_codes), torch.nn.Buffer(Codes().a_scale)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = INT8_LINEAR(x, self.codes * 1, self.scale, 0.03, 128)
            return y

    program = captured(Computed(), (draw(5)[0],))
    assert pack_int8(graph_of(program))[1] == 0
    assert Eager().compile(program)(draw(3)[0])[0].shape == (3, 320)


def test_beside_maps_in_bfloat16_both_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CastLinears, "missing", lambda self: "")
    tower = torch.nn.Sequential(torch.nn.Linear(40, 80), torch.nn.ReLU(), torch.nn.Linear(80, 48)).eval()
    both = captured(tower, (draw(40)[0],))
    for technique in (CastLinears(least=0, only=("linear",)), QuantizeLinears(least=0, only=("linear_1",))):
        both = both.with_model(technique.apply(both).model)
    skip_unless_packed(graph_of(both))
    coded, size = pack_int8(graph_of(both))
    packed, more = pack_bfloat16(coded)
    targets = [node.target for node in packed.graph.nodes]
    assert targets.count(packed_linear) == targets.count(bfloat16_linear) == 1
    session = Eager().compile(both)
    assert session.resident_bytes == size + more
    x = draw(33, 3)[0]
    torch.testing.assert_close(session(x)[0], graph_of(both)(x)[0], rtol=1e-2, atol=1e-2)
