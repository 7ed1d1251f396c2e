"""Where the time goes, on a clock that the operators themselves move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import MeasurementError
from fastrec.measure import Breakdown, Part, breakdown
from fastrec.measure.breakdown import kind_of
from fastrec.ops.linears import INT8_LINEAR
from fastrec.ops.lookups import INT8
from fastrec.program import Program

aten = torch.ops.aten


class Clock:
    """Nanoseconds that pass only where something says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def taking(self, name: str, ns: Callable[[], int] | int) -> Callable[..., Tensor]:
        def run(x: Tensor, *_: Any) -> Tensor:
            self.now += ns() if callable(ns) else ns
            return x

        run.__name__ = name
        return run


def graph_of(*calls: Callable[..., Any]) -> fx.GraphModule:
    graph = fx.Graph()
    value = graph.placeholder("x")
    for call in calls:
        value = graph.call_function(call, (value,))
    graph.output((value,))
    return fx.GraphModule(nn.Module(), graph)


def inputs(_: int) -> list[Tensor]:
    return [torch.zeros(3)]


def parts(found: Breakdown) -> dict[str, tuple[float, int]]:
    return {part.kind: (round(part.seconds * 1e9), part.calls) for part in found.parts}


def test_each_kind_has_its_operators_and_the_framework_the_rest() -> None:
    clock = Clock()
    graph = graph_of(
        clock.taking("embedding", 3000),
        clock.taking("linear", 5000),
        clock.taking("relu", 700),
        clock.taking("linear", 1000),
        clock.taking("unsqueeze", 90),
    )

    def whole(flat: Sequence[Tensor]) -> object:
        clock.now += 250
        return graph(*flat)

    found = breakdown(graph, inputs, whole, label="it", rows=3, max_rounds=7, seconds=1, clock=clock)
    assert round(found.seconds * 1e9) == 10_040 and found.n == 7
    assert parts(found) == {
        "lookup": (3000, 1),
        "interaction": (700, 1),
        "dense": (6000, 2),
        "framework": (340, 1),
    }
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.seconds)


def test_the_cheapest_call_is_nobodys_own() -> None:
    clock = Clock()
    graph = graph_of(clock.taking("linear", 5000), clock.taking("relu", 400))
    # Reading this clock takes 500 ns, and so every call does.

    def slow() -> int:
        clock.now += 500
        return clock.now

    found = breakdown(graph, inputs, label="it", rows=3, max_rounds=6, seconds=1, clock=slow)
    assert parts(found) == {"interaction": (400, 1), "dense": (5000, 1), "framework": (500, 0)}


def test_medians_are_of_each_operator_by_itself() -> None:
    clock = Clock()
    slow = iter([10**6, *[2000] * 100])
    graph = graph_of(clock.taking("linear", lambda: next(slow)), clock.taking("relu", 300))
    found = breakdown(graph, inputs, label="it", rows=3, warmup=0, max_rounds=9, seconds=1, clock=clock)
    assert parts(found)["dense"] == (2000, 1)


def test_the_whole_and_its_operators_see_other_batches_in_turn() -> None:
    clock, seen = Clock(), []

    def fresh(index: int) -> list[Tensor]:
        return [torch.tensor(float(index))]

    def apart(x: Tensor) -> Tensor:
        seen.append(("apart", int(x)))
        return x

    apart.__name__ = "relu"
    graph = graph_of(apart)

    def whole(flat: Sequence[Tensor]) -> None:
        seen.append(("whole", int(flat[0])))
        clock.now += 10

    breakdown(graph, fresh, whole, label="it", rows=1, warmup=0, min_rounds=3, max_rounds=3, clock=clock)
    assert seen == [("whole", 0), ("apart", 1), ("apart", 3), ("whole", 2), ("whole", 4), ("apart", 5)]


def test_it_goes_on_until_the_time_is_up_and_no_longer() -> None:
    clock = Clock()
    graph = graph_of(clock.taking("linear", 1000))
    found = breakdown(graph, inputs, label="it", rows=1, seconds=20e-6, clock=clock)
    assert found.n == 10
    assert breakdown(graph, inputs, label="it", rows=1, seconds=0, min_rounds=4, clock=clock).n == 4


def test_operators_that_take_longer_apart_are_scaled_to_the_whole() -> None:
    clock = Clock()
    graph = graph_of(clock.taking("linear", 6000), clock.taking("relu", 2000))

    def whole(_: Sequence[Tensor]) -> None:
        clock.now += 4000

    found = breakdown(graph, inputs, whole, label="it", rows=1, max_rounds=5, seconds=1, clock=clock)
    assert parts(found) == {"interaction": (1000, 1), "dense": (3000, 1), "framework": (0, 0)}


def test_the_ceiling_is_what_is_left_without_a_part() -> None:
    part, rest = Part("dense", 3e-4, 2), Part("framework", 1e-4, 1)
    found = Breakdown("it", 1, 4e-4, (part, rest), 9)
    assert found.ceiling(part) == pytest.approx(4.0) and found.ceiling(rest) == pytest.approx(4 / 3)
    assert Breakdown("it", 1, 4e-4, (Part("dense", 4e-4, 1),), 9).ceiling(Part("dense", 4e-4, 1)) is None


def test_a_clock_that_stands_is_refused() -> None:
    with pytest.raises(MeasurementError, match="'it': a call of 0 s"):
        breakdown(graph_of(torch.relu), inputs, label="it", rows=1, max_rounds=5, clock=lambda: 0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag = nn.Embedding(50, 8), nn.EmbeddingBag(50, 8, mode="sum")
        self.layer = nn.Linear(16, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, ids: Tensor, history: Tensor) -> Tensor:
        x = torch.cat([self.table(ids), self.bag(history)], 1)
        x = torch.relu(self.layer(x)) @ self.weight.t()
        return torch.einsum("ni,nj->nij", x, x).flatten(1).sum(1)


def test_a_captured_model_has_all_kinds() -> None:
    torch.manual_seed(0)
    program = capture(Program.read(Model().eval(), (torch.arange(6), torch.randint(50, (6, 4)))))
    assert isinstance(program.model, fx.GraphModule)
    kinds = {node.name: kind_of(node) for node in program.model.graph.nodes if node.op == "call_function"}
    by_kind = {
        kind: sorted(name for name, one in kinds.items() if one == kind) for kind in set(kinds.values())
    }
    assert len(by_kind["lookup"]) == 2 and {"linear", "matmul"} <= set(by_kind["dense"])
    assert {"cat", "relu", "einsum"} <= set(by_kind["interaction"]) and "t" in " ".join(by_kind["framework"])
    found = breakdown(
        program.model, lambda _: list(program.batch), label="it", rows=6, seconds=0, min_rounds=3
    )
    assert [part.kind for part in found.parts] == ["lookup", "interaction", "dense", "framework"]
    assert found.n == 3 and sum(part.seconds for part in found.parts) == pytest.approx(found.seconds)


def node_of(target: Any, *args: Any) -> fx.Node:
    return fx.Graph().call_function(target, args)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (INT8, "lookup"), (aten.embedding.default, "lookup"), (torch.embedding_bag, "lookup"),
        (INT8_LINEAR, "dense"), (aten.conv1d.default, "dense"), (torch._C._nn.linear, "dense"),
        (aten.mul.Tensor, "interaction"), (aten.clone.default, "interaction"), (torch.Tensor.contiguous, "interaction"),
        (aten.view.default, "framework"), (torch.Tensor.view, "framework"), (aten.sym_size.int, "framework"),
    ],
)  # fmt: skip
def test_operators_are_known_by_either_entry(target: Any, kind: str) -> None:
    assert kind_of(node_of(target)) == kind


def test_a_pick_is_a_lookup_and_a_product_dense_where_its_operand_is_constant() -> None:
    graph = fx.Graph()
    x, table = graph.placeholder("x"), graph.get_attr("table")
    turned = graph.call_function(aten.t.default, (table,))
    assert kind_of(graph.call_function(aten.index_select.default, (table, 0, x))) == "lookup"
    assert kind_of(graph.call_function(aten.index_select.default, (x, 0, table))) == "interaction"
    assert kind_of(graph.call_function(aten.mm.default, (x, turned))) == "dense"
    assert kind_of(graph.call_function(aten.mm.default, (x, x))) == "interaction"
    assert kind_of(graph.call_function(aten.addmm.default, (table, x, x))) == "interaction"
    assert kind_of(graph.call_function(aten.einsum.default, ("ij,jk->ik", [x, table]))) == "dense"
