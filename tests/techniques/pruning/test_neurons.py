"""What pruned units cost: nothing where others say the same, and widths, shares and models as they are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.program import Program
from fastrec.request import Once, ask
from fastrec.techniques import Applied, Fuse, PruneNeurons, QuantizeLinears
from fastrec.techniques.pruning.graph_units import GraphUnits
from fastrec.techniques.pruning.module_units import ModuleUnits
from fastrec.techniques.pruning.units import far
from tests.checks import assert_near, assert_unchanged, flat, snapshot

from .masks import captured, graph_units, masked
from .models import MODELS, Mlp, made, numbers

SMALL = PruneNeurons(0.5, step=2)


def programs(name: str, rows: int = 400) -> tuple[Program, Program]:
    """The program as it was read, and captured, each with `rows` rows of calibration."""
    model, batch = made(name)
    some, more = batch(5), batch(rows)
    whole = Program.read(model, some if len(some) > 1 else some[0], [more if len(more) > 1 else more[0]])
    return whole, replace(capture(whole), calibration=(more,))


def answers(program: Program, model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    return program.with_model(model).answers(list(batch))


def sizes(applied: Applied) -> dict[str, tuple[int, int]]:
    """Units before and after, by site."""
    found = {}
    for change in applied.changes:
        before, _, after = change.detail.partition(" units")[0].partition(" -> ")
        found[change.site] = (int(before), int(after))
    return found


def redundant(kind: str) -> Any:
    """48 units, of which 16 are needed: the others say the same, never change, or never wake."""
    torch.manual_seed(0)
    model: Any = Mlp(48, 32, outputs=2, act=torch.tanh if kind == "constant" else torch.relu).eval()
    with torch.no_grad():
        for layer, many in ((model.maps[0], 16), (model.maps[1], 16)):
            if kind == "twins":
                layer.weight[many:] = layer.weight[:many].repeat(len(layer.weight) // many - 1, 1)
                layer.bias[many:] = layer.bias[:many].repeat(len(layer.bias) // many - 1)
            else:
                layer.weight[many:] = 0
                layer.bias[many:] = -3.0 if kind == "dead" else 0.7
    return model


@pytest.mark.parametrize("kind", ["twins", "constant", "dead"])
@pytest.mark.parametrize("modules", [False, True])
def test_units_that_are_not_needed_cost_nothing(kind: str, modules: bool) -> None:
    model, x = redundant(kind), numbers(1000)
    whole = Program.read(model, numbers(5), [x])
    program = whole if modules else replace(capture(whole), calibration=((x,),))
    applied = PruneNeurons(0.3).apply(program)
    assert sorted(sizes(applied).values()) == [(32, 16), (48, 16)]
    fresh = (numbers(300, seed=9),)
    with torch.no_grad():
        assert_near(answers(program, applied.model, fresh), [model(*fresh)], 1e-4)
    if kind == "twins":
        blind = replace(PruneNeurons(0.3), reconstruct=False).apply(program)
        with torch.no_grad(), pytest.raises(AssertionError):
            assert_near(answers(program, blind.model, fresh), [model(*fresh)], 1e-2)


@pytest.mark.parametrize("name", ["mlp", "residual", "tasks", "beside"])
def test_without_fits_the_graph_is_the_masked_one(name: str) -> None:
    _, program = programs(name)
    applied = replace(SMALL, reconstruct=False).apply(program)
    units = GraphUnits(program)
    # Which units stayed is told by the rows that the maps that write them have left.
    held: Any = dict(applied.model.named_buffers())
    kept = {}
    for site, (_, width) in sizes(applied).items():
        node = next(node for node in applied.model.graph.nodes if node.name == site)  # type: ignore[union-attr]
        one, rows = units.maps[site], held[node.args[1].target]
        columns = one.weight if rows.shape[1] == one.weight.shape[1] else None
        bias, mine = held[node.args[2].target], program.model.get_parameter(_bias(program, site))
        kept[site] = torch.tensor([int((mine == value).nonzero()[0]) for value in bias])
        assert len(kept[site]) == width and (columns is None or torch.equal(columns[kept[site]], rows))
    batch = list(MODELS[name][1](33))
    with torch.no_grad():
        assert_near(list(applied.model(*batch)), list(masked(units, kept)(*batch)), 1e-5)


def _bias(program: Program, site: str) -> str:
    gm: Any = program.model
    return next(str(node.args[2].target) for node in gm.graph.nodes if node.name == site)


@pytest.mark.parametrize("name", ["mlp", "siamese", "tasks", "beside"])
def test_modules_become_what_the_graph_becomes(name: str) -> None:
    whole, program = programs(name)
    graph, modules = SMALL.apply(program), SMALL.apply(whole)
    # A gate's map beside others, and what is shared, are told in another order.
    assert sorted(sizes(graph).values()) == sorted(sizes(modules).values()) and graph.changes
    batch = MODELS[name][1](50)
    assert_near(answers(whole, modules.model, batch), answers(program, graph.model, batch), 1e-3)


@pytest.mark.parametrize(
    ("by", "modules"), [("activation", False), ("magnitude", True), ("taylor", False), ("fisher", True)]
)
def test_the_same_again_whatever_was_done_between_and_the_original_stays(by: Any, modules: bool) -> None:
    program = programs("beside")[0 if modules else 1]
    other = programs("mlp", 50)[1]
    before, state = snapshot(program.model), torch.random.get_rng_state()
    technique = replace(SMALL, by=by)
    first = technique.apply(program)
    SMALL.apply(other)
    again = technique.apply(program)
    assert first.changes == again.changes and first.skipped == again.skipped and first.changes
    one, two = first.model.state_dict(), again.model.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert_unchanged(program.model, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    nothing = technique.apply(program.with_model(first.model))
    assert nothing.changes == () and nothing.model is first.model
    assert "its units are pruned already" in {skip.reason for skip in nothing.skipped}


@pytest.mark.parametrize("modules", [False, True])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_widths_are_multiples_of_what_kernels_want(modules: bool, keep: float) -> None:
    torch.manual_seed(0)
    model: Any = Mlp(100, 50, 33, 16).eval()
    whole = Program.read(model, numbers(5), [numbers(200)])
    program = whole if modules else replace(capture(whole), calibration=((numbers(200),),))
    applied = PruneNeurons(keep).apply(program)
    found = [held for held in applied.model.state_dict().values() if held.ndim == 2]
    assert applied.changes and all(after % 16 == 0 for _, after in sizes(applied).values())
    assert {len(held) for held in found} <= {100, 50, 33, 1} | {*range(16, 97, 16)}
    assert all((len(held), held.shape[1]) != (100, 6) or keep > 0.5 for held in found)
    said = {skip.reason for skip in applied.skipped}
    assert "its 16 units are no more than 16" in said


def test_no_more_multiply_adds_are_left_than_asked_for() -> None:
    _, program = programs("tasks")
    for keep in (0.75, 0.4):
        (first, *_) = replace(SMALL, keep=keep).apply(program).changes
        fewer = float(first.detail.partition("; ")[2].rpartition("; ")[2].partition("x")[0])
        assert fewer >= 1 / keep - 0.01


@pytest.mark.parametrize("name", ["gated", "interest", "encoder"])
def test_it_goes_on_through_fusion_integers_and_backends(name: str) -> None:
    _, program = programs(name)
    pruned = program.with_model(SMALL.apply(program).model)
    fused = pruned.with_model(Fuse().apply(pruned).model)
    coarse = fused.with_model(QuantizeLinears(least=0).apply(fused).model)
    batch = MODELS[name][1](33)
    with torch.no_grad():
        right = list(pruned.model(*batch))
        for backend in (Eager(), OnnxRuntime()):
            for made_of, share in ((fused, 1e-4), (coarse, 0.1)):
                assert_near(list(backend.compile(made_of.bare())(*batch)), right, share)


def test_each_task_is_answered_and_none_is_forgotten() -> None:
    whole, program = programs("tasks", 2000)
    applied = SMALL.apply(program)
    batch = MODELS["tasks"][1](2000)
    with torch.no_grad():
        for got, right in zip(applied.model(*batch), whole.model(*batch), strict=True):
            assert float((got - right).norm() / (right - right.mean()).norm()) < 0.5


def test_calibration_of_a_request_holds_its_features_once() -> None:
    model, batch = made("beside")
    program = capture(Program.read(model, batch(5)))
    features = tuple(
        replace(feature, request=True) if index == 0 else feature
        for index, feature in enumerate(program.layout.features)
    )
    asked = ask(replace(program, layout=replace(program.layout, features=features)))
    once = Once(features)
    given = [tuple(once.one(once.same(list(batch(40))))) for _ in range(3)]
    assert given[0][0].shape[0] == 1 and given[0][1].shape[0] == 40
    applied = SMALL.apply(replace(asked, calibration=tuple(given)))
    assert applied.changes
    rows = once.same(list(batch(7)))
    with torch.no_grad():
        assert_near(list(applied.model(*once.one(rows))), flat(model(*rows)), 1.0)


@pytest.mark.parametrize("modules", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_do_no_harm_to_what_they_do_not_say(modules: bool, rows: int) -> None:
    model, batch = made("beside")
    whole = Program.read(model, batch(rows), [batch(rows)])
    program = (
        whole if modules else replace(capture(Program.read(model, batch(5))), calibration=(batch(rows),))
    )
    applied = PruneNeurons(0.7, step=2).apply(program)
    got = answers(program, applied.model, batch(200))
    assert applied.changes and all(bool(out.isfinite().all()) for out in got)
    with torch.no_grad():
        assert_near(got, [model(*batch(200))], 1.0)


def test_of_few_rows_for_many_columns_no_more_is_fitted_than_others_agree_with() -> None:
    torch.manual_seed(0)
    model, fresh = Mlp(96).eval(), numbers(500, seed=9)
    program = replace(captured(model, numbers(5)), calibration=((numbers(100),),))
    off = []
    for reconstruct in (True, False):
        applied = PruneNeurons(0.8, reconstruct=reconstruct).apply(program)
        assert list(sizes(applied).values()) == [(96, 64)]
        with torch.no_grad():
            off.append(float((applied.model(fresh)[0] - model(fresh)).norm()))
    assert off[0] < off[1]


def test_answers_that_are_ids_are_judged_by_how_many_are_others() -> None:
    _, program = programs("chosen")
    assert SMALL.apply(program).changes
    with pytest.raises(TechniqueError, match="take by='activation'"):
        replace(SMALL, by="taylor").apply(program)


def test_how_far_answers_moved() -> None:
    numbers_of, ids_of = torch.tensor([1.0, 3.0]), torch.tensor([1, 2, 3, 4])
    assert far([[numbers_of, ids_of]], [[numbers_of, ids_of + 1]]) == 0
    assert far([[ids_of]], [[torch.tensor([1, 2, 3, 5])]]) == 0.25
    assert far([[numbers_of + 1]], [[numbers_of]]) == pytest.approx(1.0)
    # All batches together: off by the root of 2, of a spread that is the root of 5.
    both = far([[numbers_of], [numbers_of]], [[numbers_of], [numbers_of + 1]])
    assert both == pytest.approx((2 / 5) ** 0.5)
    assert far([[numbers_of[:1]]], [[numbers_of]]) == far([[numbers_of / 0]], [[numbers_of]]) == float("inf")
    assert far([[numbers_of[:0]]], [[numbers_of[:0]]]) == 0


def test_a_map_that_reads_two_groups_is_shifted_once() -> None:
    # Each group alone moves the mean; the map that reads both is told what both need.
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.left(x).sigmoid() + 5, self.right(x).sigmoid() - 9], 1))  # type: ignore[no-any-return]

    model = Two().eval()
    x = numbers(1000)
    for program in (Program.read(model, x[:5], [x]), replace(captured(model, x[:5]), calibration=((x,),))):
        applied = PruneNeurons(0.3, step=2).apply(program)
        assert len(applied.changes) == 2
        got, right = answers(program, applied.model, (x,))[0], model(x).detach()
        assert abs(float((got - right).mean())) < 1e-3


def test_what_the_calibration_does_not_say_stays() -> None:
    model, batch = made("mlp")
    program = captured(model, *batch(5))
    bad = batch(50)[0].clone()
    bad[3, 2] = torch.nan
    said = SMALL.apply(replace(program, calibration=((bad,),)))
    assert not said.changes and said.model is program.model
    assert {skip.reason for skip in said.skipped} == {"calibration gave it values that are not finite"}
    none = SMALL.apply(replace(program, calibration=((bad[:0],),)))
    assert {skip.reason for skip in none.skipped} == {
        "no row of the calibration reaches all that read its units"
    }


@pytest.mark.parametrize("modules", [False, True])
def test_answers_that_are_not_finite_judge_nothing(modules: bool) -> None:
    class Logarithm(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log()

    torch.manual_seed(0)
    whole = Program.read(Logarithm(16).eval(), numbers(5), [numbers(50)])
    program = whole if modules else replace(capture(whole), calibration=((numbers(50),),))
    applied = SMALL.apply(program)
    assert applied.model is program.model and not applied.changes
    assert ("", "the model's answers to the calibration are not all finite") in {
        (skip.site, skip.reason) for skip in applied.skipped
    }


def test_units_by_their_names() -> None:
    whole, program = programs("beside")
    left, right, mid = (group.site for group in GraphUnits(program).groups)
    only = replace(SMALL, only=(right,)).apply(program)
    assert [change.site for change in only.changes] == [right]
    # What was left can go later; what went does not again, and what reads it is not taken for it.
    then = SMALL.apply(program.with_model(only.model))
    assert right not in sizes(then) and then.changes
    spared = replace(SMALL, without=(left, "nobody")).apply(program)
    assert left not in sizes(spared)
    assert ("nobody", "to be left as it is, but it writes no hidden units of this model") in {
        (skip.site, skip.reason) for skip in spared.skipped
    }
    with pytest.raises(
        InputError, match=f"has 'table', which writes no hidden units .* are {left}, {right}, {mid}"
    ):
        replace(SMALL, only=("table",)).apply(program)
    assert [c.site for c in replace(SMALL, only=("mid",)).apply(whole).changes] == ["mid"]
    # A group goes by the name of any map that writes it.
    writers = graph_units("gated").groups[0].writers
    assert replace(SMALL, only=writers[1:]).apply(programs("gated")[1]).changes[0].site == writers[0]


@pytest.mark.parametrize("modules", [False, True])
def test_the_share_is_of_what_is_around_the_units_that_are_taken(modules: bool) -> None:
    torch.manual_seed(0)
    whole = Program.read(Mlp(16, 16, 16).eval(), numbers(5), [numbers(100)])
    program = whole if modules else replace(capture(whole), calibration=((numbers(100),),))
    (change,) = replace(SMALL, only=("maps.1" if modules else "linear_1",)).apply(program).changes
    assert change.detail.startswith("16 -> 8 units") and change.detail.endswith(
        "2.00x fewer multiply-adds in the maps around all of them"
    )


def test_modules_are_fitted_in_the_order_in_which_they_are_called() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.out, self.second, self.first = nn.Linear(10, 1), nn.Linear(12, 10), nn.Linear(6, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.second(torch.relu(self.first(x)))))  # type: ignore[no-any-return]

    whole = Program.read(Backwards().eval(), numbers(5), [numbers(200)])
    graph = replace(captured(whole.model, numbers(5)), calibration=((numbers(200),),))
    applied = SMALL.apply(whole)
    assert [change.site for change in applied.changes] == ["first", "second"]
    given = (numbers(50, seed=3),)
    assert_near(answers(whole, applied.model, given), answers(graph, SMALL.apply(graph).model, given), 1e-4)


def test_units_that_stay_because_others_are_missed_less_say_so() -> None:
    for program in programs("mlp"):
        applied = PruneNeurons(0.9, step=2).apply(program)
        (change,) = applied.changes
        (site,) = [skip.site for skip in applied.skipped if "others are missed less" in skip.reason]
        assert site != change.site


def test_a_graph_that_writes_in_place_is_left() -> None:
    class Counting(Mlp):
        def __init__(self) -> None:
            super().__init__(8)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return super().forward(x) + self.calls * 0

    applied = SMALL.apply(Program.read(Counting().eval(), numbers(5)))
    assert not applied.changes and "writes to its own tensor" in applied.skipped[0].reason


@pytest.mark.parametrize(
    ("setting", "value", "takes"),
    [
        ("keep", 0, "a share above 0 to below 1"),
        ("keep", 1.0, "a share above 0 to below 1"),
        ("by", "size", "'activation' or 'magnitude' or 'taylor' or 'fisher'"),
        ("step", 0, "a whole number from 1"),
        ("reconstruct", 1, "True or False"),
        ("only", ["linear"], "a tuple of names"),
        ("without", "linear", "a tuple of names"),
    ],
)
def test_wrong_settings_are_named(setting: str, value: object, takes: str) -> None:
    with pytest.raises(InputError) as caught:
        PruneNeurons(**{setting: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"PruneNeurons({setting}=...) takes {takes}, got {value!r}")


def test_milder_settings_cut_a_half_and_a_quarter() -> None:
    program = programs("mlp", 5)[1]
    assert [one.keep for one in PruneNeurons(0.2).milder(program, ())] == [0.6, 0.8]  # type: ignore[attr-defined]
    assert (
        PruneNeurons().modules and PruneNeurons().cuts and PruneNeurons().fitted and not PruneNeurons().exact
    )


def test_modules_say_that_they_were_pruned_and_copies_as_well() -> None:
    whole, _ = programs("mlp")
    applied = SMALL.apply(whole)
    found = ModuleUnits(whole.with_model(applied.model))
    again = ModuleUnits(whole.with_model(whole.with_model(applied.model).draft()))
    for units in (found, again):
        assert [group.reason for group in units.groups[:2]] == ["its units are pruned already"] * 2
    assert not any(group.reason for group in ModuleUnits(whole).groups[:2])


@pytest.mark.parametrize("modules", [False, True])
def test_a_model_without_hidden_units_is_told_so(modules: bool) -> None:
    whole = Program.read(nn.Sequential(nn.Embedding(9, 4), nn.Flatten()).eval(), torch.arange(5))
    (skip,) = SMALL.apply(whole if modules else capture(whole)).skipped
    assert (skip.site, skip.reason) == ("", "no hidden units of linear maps were found")


def test_integers_have_no_units_any_more_and_the_order_is_said() -> None:
    _, program = programs("mlp")
    integers = program.with_model(QuantizeLinears(least=0).apply(program).model)
    applied = SMALL.apply(integers)
    assert applied.model is integers.model
    assert [(skip.site, skip.reason) for skip in applied.skipped] == [
        ("", "its linear maps are in 8 bits already: put PruneNeurons first")
    ]
