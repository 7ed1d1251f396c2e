"""8-bit linear maps compiled by Inductor: the reference's numbers, one row at a time, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import Inductor, Session, inductor, packed_int8
from fastrec.backends.inductor_ops import as_known
from fastrec.errors import BackendError
from fastrec.ops.linears import INT8_LINEAR
from fastrec.ops.packed_linears import pack
from fastrec.program import Program

from .graphs import assert_no_row_sees_another, captured, graph_of, skip_unless_packed
from .test_onnx_ops import Codes, draw

BACKEND = Inductor()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    codes = Codes()
    for reason in (BACKEND.unavailable(), pack(codes.a_codes, codes.a_scale, 0.03, 128)):
        if isinstance(reason, str):
            pytest.skip(reason)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def program() -> Program:
    made = captured(Codes(), draw(5))
    skip_unless_packed(graph_of(made))
    return made


@pytest.fixture(scope="module", params=[inductor._GENERATED, 0], ids=["generated", "onednn"])
def session(program: Program, request: pytest.FixtureRequest) -> Session:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor, "_GENERATED", request.param)
        return BACKEND.compile(program)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 33, 1000])
def test_the_numbers_are_those_of_the_reference(session: Session, program: Program, rows: int) -> None:
    x = draw(rows, rows)
    for got, right in zip(session(*x), program.model(*x), strict=True):
        assert got.shape == right.shape and got.dtype == right.dtype
        if rows:
            off = (got - right).abs().amax(1) / right.abs().max()
            # The sums are the same; scale and bias round in float32, and a code of the next layer may tip over.
            assert float((off > 2e-5).float().mean()) < 0.01 and float(off.max()) < 0.02


def test_a_row_depends_on_no_other(session: Session) -> None:
    x = draw(300, 4)
    for tensor in x:
        tensor[7], tensor[11], tensor[12] = 1e3, 1e30, -1e30
    assert_no_row_sees_another(session, x)


class Wide(nn.Module):
    """One map of a width that is no multiple of what a processor multiplies at a time."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.codes = nn.Buffer(torch.randint(-127, 128, (24, inner), generator=rng).to(torch.int8))
        self.scale = nn.Buffer(torch.rand(24, generator=rng) / 100)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = INT8_LINEAR(x, self.codes, self.scale, 0.03, 131)
        return y


@pytest.mark.parametrize("inner", [2, 41, 67])
def test_any_width(inner: int) -> None:
    program = captured(Wide(inner), (torch.randn(5, inner),))
    skip_unless_packed(graph_of(program))
    session, made = BACKEND.compile(program), Wide(inner)
    # The zero is taken off in float32, from sums of all codes.
    largest = 255 * made.codes.abs().float().sum(1) * made.scale * 0.03
    for rows in (0, 1, 7, 200):
        x = torch.randn(rows, inner)
        x[:1] = float("inf")
        (got,), (right,) = session(x), program.model(x)
        assert got.shape == right.shape and ((got - right).abs() <= 4 * 2**-24 * largest).all()


def test_the_graph_is_left(program: Program) -> None:
    gm = program.model
    assert isinstance(gm, fx.GraphModule)
    code, held = gm.code, set(dict(gm.named_buffers()))
    made, count = as_known(gm, "inductor")
    assert count == 4 and INT8_LINEAR not in {node.target for node in made.graph.nodes}
    assert gm.code == code and set(dict(gm.named_buffers())) == held
    for got, right in zip(made(*draw(9)), gm(*draw(9)), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_a_processor_whose_products_are_wrong_is_refused(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_int8, "pack", lambda *_: "saturates")
    with pytest.raises(BackendError, match=r"saturates \(at int8_linear"):
        BACKEND.compile(program)


class Odd(nn.Module):
    """A weight that is computed, or rows whose number is."""

    def __init__(self, fewer: bool) -> None:
        super().__init__()
        self.codes, self.scale = nn.Buffer(Codes().a_codes), nn.Buffer(Codes().a_scale)
        self.fewer = fewer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.fewer:
            y = INT8_LINEAR(x[1:], self.codes, self.scale, 0.03, 128)
        else:
            y = INT8_LINEAR(x, self.codes * 1, self.scale, 0.03, 128)
        return y


@pytest.mark.parametrize("fewer", [True, False])
def test_what_is_computed_is_refused(fewer: bool) -> None:
    program = captured(Odd(fewer), (draw(5)[0],))
    with pytest.raises(BackendError, match="number of rows" if fewer else "weight of an 8-bit"):
        BACKEND.compile(program)
