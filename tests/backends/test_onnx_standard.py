"""Graphs in standard operators: what they compute is what they stand for, and what has no form is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends.onnx_export import standard_model
from fastrec.backends.onnx_standard import in_standard_operators
from fastrec.capture import capture
from fastrec.errors import BackendError
from fastrec.graph import operator_name
from fastrec.ops import INT4, INT8
from fastrec.program import Program
from fastrec.techniques import CastLinears, QuantizeTables, Technique
from tests.techniques.fusion import test_masked_positions as masked


class Bags(nn.Module):
    """Bags of each kind."""

    def __init__(self, mode: str, padding: int | None, ends: bool, weighted: bool) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 6, mode=mode, padding_idx=padding, include_last_offset=ends)
        self.weighted = weighted

    def forward(self, ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        return self.bags(ids, starts, weights if self.weighted else None)


def given(rows: int, ends: bool) -> tuple[Tensor, ...]:
    """Three ids for a row, the first and the last bags empty."""
    rng = torch.Generator().manual_seed(rows)
    starts = torch.arange(0, 3 * rows, 3).clamp(max=3 * rows - 3)
    starts[0:2] = 0
    starts[-1] = 3 * rows
    if ends:
        starts = torch.cat([starts, torch.tensor([3 * rows])])
    return torch.randint(20, (3 * rows,), generator=rng), starts, torch.rand(3 * rows, generator=rng)


def graph_of(model: nn.Module, *batch: Tensor, recipe: tuple[Technique, ...] = ()) -> fx.GraphModule:
    program = capture(Program.read(model.eval(), batch))
    for technique in recipe:
        program = program.with_model(technique.apply(program).model)
    assert isinstance(program.model, fx.GraphModule)
    return program.model


def names(gm: fx.GraphModule) -> set[str]:
    return {operator_name(node) for node in gm.graph.nodes}


@pytest.mark.parametrize(
    ("mode", "padding", "ends", "weighted"),
    [
        ("sum", None, False, False),
        ("sum", 4, True, True),
        ("mean", None, True, False),
        ("mean", 0, False, False),
    ],
)
def test_bags_are_rows_added_up(mode: str, padding: int | None, ends: bool, weighted: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bags(mode, padding, ends, weighted)
    gm = graph_of(model, *given(8, ends))
    made = in_standard_operators(gm)
    assert "embedding_bag" in names(gm) and "embedding_bag" not in names(made)
    for rows in (3, 8, 30):
        batch = given(rows, ends)
        with torch.no_grad():
            torch.testing.assert_close(made(*batch)[0], model(*batch), rtol=1e-6, atol=1e-6)


def test_the_largest_of_a_bag_is_refused() -> None:
    gm = graph_of(Bags("max", None, False, False), *given(8, False))
    with pytest.raises(BackendError, match="takes the largest of a bag"):
        in_standard_operators(gm)


@pytest.mark.parametrize(("bits", "target"), [(8, INT8), (4, INT4)])
def test_rows_of_small_integers_are_decoded(bits: Any, target: Any) -> None:
    table = nn.Embedding(50, 12)
    ids = torch.randint(50, (9, 2))
    gm = graph_of(table, ids, recipe=(QuantizeTables(bits=bits, least_bytes=0),))
    made = in_standard_operators(gm)
    assert any(node.target is target for node in gm.graph.nodes)
    assert not any(node.target is target for node in made.graph.nodes)
    torch.testing.assert_close(made(ids)[0], gm(ids)[0], rtol=1e-6, atol=1e-7)
    # Codes stay what they are: nothing takes more than a byte of each, two share one of int4.
    held = sum(tensor.nbytes for tensor in made.buffers())
    assert held == 50 * (12 * bits // 8 + 8)


def test_bfloat16_is_computed_in_float32() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(20, 32)
    gm = graph_of(model, x, recipe=(CastLinears(least=0),))
    made = in_standard_operators(gm)
    short = [
        node
        for node in made.graph.nodes
        if node.op == "call_function" and getattr(node.meta["val"], "dtype", None) is torch.bfloat16
    ]
    assert {operator_name(node) for node in short} <= {"to", "_to_copy"}
    torch.testing.assert_close(made(x)[0], gm(x)[0], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("pool", [masked.zeros, masked.softmax], ids=lambda pool: pool.__name__)
def test_what_is_picked_by_value_is_picked_inside(pool: Callable[..., Tensor]) -> None:
    gm, _ = masked.skipped(pool)
    gm.recompile()
    model = standard_model(gm, "onnx", everywhere=True)
    assert any(node.op_type == "NonZero" for node in model.graph)
    data = onnx_ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {item.name: tensor.numpy() for item, tensor in zip(session.get_inputs(), tensors, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(None, feed))

    for got, right in masked.answers(call, pool):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
