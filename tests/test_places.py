"""Where things stand in the caller's code: modules by their paths, lines as Python knows them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fastrec import CaptureError, compress
from fastrec.backends import Eager
from fastrec.capture import _export, _resized, capture
from fastrec.graph import emit, is_call
from fastrec.places import called, line_of, named, place_of, places
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.techniques import QuantizeLinears

aten = torch.ops.aten


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)  # the line of its maps
        return y * torch.sigmoid(y)  # its own line


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"user-id": Tower(), "item": Tower()})

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.towers["user-id"](user) - self.towers["item"](item)).sum(-1)  # the line of both


BATCH = (torch.randn(5, 4), torch.randn(5, 4))


def at(words: str) -> str:
    """The line of this file that has these words in it."""
    found = [
        number
        for number, line in enumerate(inspect.getsource(inspect.getmodule(at)).splitlines(), 1)
        if words in line
    ]  # type: ignore[arg-type]  # this module
    return f"tests/test_places.py:{found[0]}"


@pytest.mark.parametrize("strict", [False, True])
def test_calls_have_their_module_and_their_line(strict: bool) -> None:
    program = Program.read(Two().eval(), BATCH)
    gm, _ = _export(program, _resized(program, list(BATCH)), strict)
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    maps = [place_of(node) for node in calls if is_call(node, aten.linear.default)]
    assert maps == [
        f"towers.{tower}.mlp.{k}, {at('the line of its maps')}"
        for tower in ("user-id", "item")
        for k in (0, 2)
    ]
    product = next(node for node in calls if is_call(node, aten.mul.Tensor))
    assert named(product) == f"{product.name} (towers.user-id, {at('its own line')})"
    assert called(product) == f"mul (towers.user-id, {at('its own line')})"
    assert place_of(calls[-1]) == at("the line of both")  # the model's own code


def test_what_a_rewrite_made_is_near_what_is_in_front_of_it() -> None:
    gm = capture(Program.read(Two().eval(), BATCH)).graph
    product = next(node for node in gm.graph.nodes if is_call(node, aten.mul.Tensor))
    with gm.graph.inserting_after(product):
        made = emit(gm, aten.neg.default, (product,))
    assert called(made) == f"neg (near towers.user-id, {at('its own line')})"
    inputs = [node for node in gm.graph.nodes if node.op in ("placeholder", "get_attr")]
    assert not any(map(place_of, inputs)) and named(inputs[0]) == inputs[0].name and not called(inputs[0])


def test_sites_are_found_in_the_first_graph_that_has_them() -> None:
    gm = capture(Program.read(Two().eval(), BATCH)).graph
    empty = fx.GraphModule(nn.Module(), fx.Graph())
    find = places(nn.Linear(2, 2), empty, gm)
    assert (
        find("linear_3") == f"towers.item.mlp.2, {at('the line of its maps')}" == find("linear_3, linear_1")
    )
    assert find("mlp.2") == find("") == ""


class Packed(nn.Module):
    """A recurrence over as many events as each history has."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)  # is read
        return self.gru(packed)[1][0].sum(-1)  # is run


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # branches
            x = 2 * x
        return x.sum(-1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).sum(-1)  # draws


@pytest.mark.parametrize(
    ("model", "batch", "lines"),
    [
        (Packed(), (torch.randn(5, 6, 4), torch.tensor([1, 3, 6, 2, 5])), ["is read", "is run"]),
        (Branch(), (torch.randn(5, 4),), ["branches"]),
        (Noisy(), (torch.randn(5, 4),), ["draws"]),
    ],
)
def test_what_cannot_be_captured_has_its_line(model: nn.Module, batch: Any, lines: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Program.read(model.eval(), batch))
    for words in lines:
        assert f"at {at('# ' + words)}" in str(caught.value)


def test_errors_from_elsewhere_have_no_line() -> None:
    assert line_of(ValueError("no")) == ""
    try:
        nn.Linear(2, 3)(torch.zeros(4))
    except RuntimeError as error:
        assert line_of(error) == ""  # whoever called is not the model


def test_the_report_says_where_something_was_left_alone() -> None:
    fast = compress(
        Two().eval(), BATCH, recipe=Recipe((QuantizeLinears(),)), batch_sizes=(8,), seconds=1, backends=Eager(), progress=False,
        calibration=[BATCH],
    )  # fmt: skip
    small = [skip for skip in fast.report.skipped if "linear" in skip.site]
    assert small and {skip.place.partition(", ")[2] for skip in small} == {at("the line of its maps")}
    assert f"{small[0].site} ({small[0].place})" == small[0].where
