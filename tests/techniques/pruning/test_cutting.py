"""A graph without units is the graph whose readers do not look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.graph import constant
from fastrec.techniques.pruning.graph_units import GraphUnits
from tests.checks import assert_as_good, assert_unchanged, flat, snapshot
from tests.zoo import ZOO, Entry
from tests.zoo.programs import captured as captured_of
from tests.zoo.programs import program_of

from .masks import assert_cut_is_mask, captured, drawn, graph_units, units_of
from .models import MODELS, made, numbers


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_is_a_mask(name: str) -> None:
    found, batch = graph_units(name), MODELS[name][1]
    before = snapshot(found.program.model)
    for seed in range(3):
        for rows in (1, 9):
            assert_cut_is_mask(found, drawn(found, seed), list(batch(rows)))
    assert_unchanged(found.program.model, before)


@pytest.mark.parametrize(
    "entry",
    [e for e in ZOO if e.name in ("dlrm_lists", "fibinet", "din", "bags")],
    ids=lambda entry: entry.name,
)  # fmt: skip
def test_a_cut_is_a_mask_in_the_zoo(entry: Entry) -> None:
    found = GraphUnits(captured_of(entry))
    assert units_of(found)
    batch = entry.batch(33, torch.Generator().manual_seed(5))
    assert_cut_is_mask(found, drawn(found), program_of(entry).flat(batch))


def weights(gm: fx.GraphModule) -> dict[int, list[str]]:
    """The linear maps of each weight, by where it is held."""
    found: dict[int, list[str]] = {}
    for node in gm.graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            held = constant(gm, node.args[1])
            assert held is not None
            found.setdefault(held.data_ptr(), []).append(node.name)
    return found


def test_shared_weights_stay_shared() -> None:
    found = graph_units("siamese")
    whole: Any = found.without({}, {}).model
    kept = drawn(found)
    fits = {
        one.name: (one.weight[:, one.left(kept)] + 1, torch.ones(len(one.weight)))
        for one in found.maps.values()
    }
    first = {one.alike: fits[one.name] for one in found.maps.values()}
    for told in ({}, {one.name: first[one.alike] for one in found.maps.values() if one.places}):
        gm: Any = found.without(kept, told).model
        assert list(weights(gm).values()) == list(weights(whole).values())
        assert len(weights(gm)) == 3


def test_fits_take_the_place_of_weights_and_are_added_to_biases() -> None:
    model, batch = made("computed")
    found = graph_units("computed")
    (reader,) = found.readers(found.groups[0])
    kept = {found.groups[0].site: torch.tensor([0, 3, 4])}
    weight, shift = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(4.0)
    cut: Any = found.without(kept, {reader.name: (weight, shift)}).model
    x, more = batch(7)
    with torch.no_grad():
        h = torch.relu(model.first(x))[:, [0, 3, 4]]
        right = model.out(torch.tanh(h @ weight.float().t() + model.shift(more)[0] + shift))
        torch.testing.assert_close(cut(x, more)[0], right)


def test_a_map_that_is_read_and_written_takes_both() -> None:
    found, batch = graph_units("crossed"), MODELS["crossed"][1]
    kept = {found.groups[0].site: torch.tensor([1, 2, 5])}
    assert sorted(tuple(one.weight.shape) for one in found.maps.values()) == [
        (1, 10), (4, 10), (10, 4), (10, 6), (10, 10), (10, 10),
    ]  # fmt: skip
    cut: Any = assert_cut_is_mask(found, kept, list(batch(9)))
    shapes = sorted(tuple(held.shape) for held in cut.state_dict().values() if held.ndim == 2)
    assert shapes == [(1, 3), (3, 3), (3, 3), (3, 4), (3, 6), (4, 3)]


def test_the_bytes_of_what_was_made_are_told_once() -> None:
    found = graph_units("beside")
    program = found.program
    kept = drawn(found)
    gm, bytes_made = found.finished(kept, {}, found.groups)
    pointers = {held.data_ptr() for held in program.model.state_dict().values()}
    fresh = [held for held in gm.state_dict().values() if held.data_ptr() not in pointers]
    assert sum(bytes_made.values()) == sum(held.nbytes for held in fresh)
    assert bytes_made.keys() == kept.keys() and all(bytes_made.values())


ACTS = (torch.relu, torch.tanh, F.gelu, F.softplus, torch.exp)


class Random(nn.Module):
    """Steps of (kind, which values they read, width), each over the values before it."""

    def __init__(self, steps: Sequence[tuple[str, int, int, int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 6)
        self.layers = nn.ModuleDict()
        self.plan: list[tuple[str, int, int, int]] = []
        widths = [6, 6]
        for place, (kind, left, right, size) in enumerate(steps):
            left, right = left % len(widths), right % len(widths)
            width = widths[left]
            if kind in ("add", "mul", "where") and widths[right] != width:
                kind = "cat"
            if kind == "again" and f"{right - 2}" not in self.layers:
                kind = "map"
            if kind == "again":
                again: Any = self.layers[f"{right - 2}"]
                kind = "again" if isinstance(again, nn.Linear) and again.in_features == width else "map"
            if kind == "map":
                self.layers[f"{place}"] = nn.Linear(width, size)
            elif kind == "norm":
                self.layers[f"{place}"] = nn.BatchNorm1d(width)
            elif kind == "layer_norm":
                self.layers[f"{place}"] = nn.LayerNorm(width)
            widths.append(
                size if kind == "map" else width + widths[right] if kind == "cat" else
                int(self.layers[f"{right - 2}"].out_features) if kind == "again" else width  # type: ignore[arg-type]
            )  # fmt: skip
            self.plan.append((kind, left, right, size))
        self.scales = nn.ParameterList(nn.Parameter(torch.randn(width)) for width in widths)
        self.out = nn.Linear(widths[-1] + widths[-2], 1)

    def forward(self, x: Tensor, item: Tensor) -> Tensor:
        values = [x, self.table(item)]
        for place, (kind, left, right, size) in enumerate(self.plan):
            a, b = values[left], values[right]
            if kind in ("map", "norm", "layer_norm"):
                values.append(self.layers[f"{place}"](a))
            elif kind == "again":
                values.append(self.layers[f"{right - 2}"](a))
            elif kind == "add":
                values.append(a + b)
            elif kind == "mul":
                values.append(torch.tanh(a) * b)
            elif kind == "where":
                values.append(torch.where(a > 0, a, b))
            elif kind == "cat":
                values.append(torch.cat([a, b], 1))
            elif kind == "scale":
                values.append(a * self.scales[left] + 1)
            else:
                values.append(ACTS[size % len(ACTS)](a.clamp(-3, 3)))
        return self.out(torch.cat(values[-2:], 1))  # type: ignore[no-any-return]


KINDS = (
    "map",
    "map",
    "map",
    "act",
    "act",
    "add",
    "mul",
    "where",
    "cat",
    "scale",
    "norm",
    "layer_norm",
    "again",
)
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(0, 11), st.integers(2, 9)),
    min_size=3, max_size=10,
)  # fmt: skip
ITEMS = torch.arange(12) % 20


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(STEPS, st.integers(0, 1000))
def test_whatever_graph_is_drawn_a_cut_is_a_mask(steps: list[tuple[str, int, int, int]], seed: int) -> None:
    model = Random(steps).eval()
    program = captured(model, numbers(5), ITEMS[:5])
    found = GraphUnits(program)
    batch = [numbers(12, seed=7), ITEMS]
    with torch.no_grad():
        whole = flat(found.without({}, {}).model(*batch))
        assert_as_good(whole, [model(*batch)], [out.double() for out in whole])
    if units_of(found):
        assert_cut_is_mask(found, drawn(found, seed), batch)
