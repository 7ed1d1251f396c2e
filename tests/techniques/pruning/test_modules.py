"""Units of models as modules hold them: where they are read, that a cut is a mask, and what torch-pruning must not do to a model."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.techniques import Skip
from fastrec.techniques.pruning.modules import ModuleGroup, find_units, replace_weights, seen_by, without
from fastrec.techniques.pruning.widths import Widths
from fastrec.techniques.quantization.layers import named
from tests.checks import assert_as_good, assert_unchanged, snapshot
from tests.zoo import ZOO, Entry, make
from tests.zoo.base import tower


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def program_of(model: nn.Module, *batch: Any, calibration: tuple[Any, ...] = ()) -> Program:
    return replace(Program.read(model.eval(), batch), calibration=calibration)


def of_zoo(name: str, rows: int = 40) -> tuple[Program, Entry]:
    entry = next(entry for entry in ZOO if entry.name == name)
    model = make(entry)
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    return Program.read(target, entry.batch(rows, rng(1))), entry


def units_of(program: Program) -> dict[str, ModuleGroup]:
    return {group.site: group for group in find_units(program)[0]}


def reasons_of(program: Program) -> dict[str, str]:
    return {skip.site: skip.reason for skip in find_units(program)[1]}


def masked(program: Program, groups: Mapping[str, ModuleGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """The model with the columns of what is not kept set to zero, on a copy of its own."""
    model = copy.deepcopy(program.model)
    for site, keep in kept.items():
        gone = sorted({*range(groups[site].width)} - {*keep.tolist()})
        for path, columns in groups[site].readers:
            reader: Any = model.get_submodule(path)
            with torch.no_grad():
                reader.weight[:, [columns[unit] for unit in gone]] = 0
    return model


def assert_cut_is_mask(program: Program, kept: Mapping[str, Tensor], batch: Any) -> nn.Module:
    """The cut model answers this batch as the masked one does, and its sites are narrower; the model is as it was."""
    before = snapshot(program.model)
    groups = units_of(program)
    cut = without(program, groups.values(), kept)
    for site, keep in kept.items():
        for path in (site, *groups[site].coupled):
            linear: Any = cut.get_submodule(path)
            assert linear.out_features == len(linear.weight) == len(keep) < groups[site].width
    other = program.with_model(masked(program, groups, kept))
    right = copy.deepcopy(other.model).double()
    flat = program.flat(batch)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in flat]
    got, old = program.with_model(cut).answers(flat), other.answers(flat)
    assert_as_good(got, old, other.with_model(right).answers(wide))
    assert_unchanged(program.model, before)
    return cut


class Around(nn.Module):
    """Two linear maps, and whatever is done with the units of the first."""

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Any], **modules: nn.Module | Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        for name, module in modules.items():
            setattr(self, name, nn.Parameter(module) if isinstance(module, Tensor) else module)
        self._use = use

    def forward(self, x: Tensor) -> Any:
        return self._use(self, x, torch.relu(self.up(x)))


def around(use: Callable[[Any, Tensor, Tensor], Any], **modules: nn.Module | Tensor) -> Program:
    return program_of(Around(use, **modules), torch.randn(30, 6, generator=rng(2)))


# dlrm takes no single row, and is asked for none here.
@pytest.mark.parametrize("entry", [e for e in ZOO if e.name != "counting"], ids=lambda entry: entry.name)
def test_whatever_is_found_in_the_zoo_can_be_cut(entry: Entry) -> None:
    program, _ = of_zoo(entry.name)
    groups = units_of(program)
    if groups:
        kept = {
            site: torch.arange(group.width)[1 :: 1 + index % 2]
            for index, (site, group) in enumerate(groups.items())
        }
        assert_cut_is_mask(program, kept, entry.batch(33, rng(5)))


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("looping", {"head.0"}),
        ("held", set()),
        ("unreadable", set()),
        ("dlrm", {"bottom.0", "top.0"}),
        ("dlrm_lists", {"bot_l.0", "top_l.0"}),
        ("dcnv2", {"deep.0", "deep.3"}),
        ("shared", {"squash.0", "squash.3"}),
        ("two_tower", {"user_tower.0", "user_tower.4", "item_tower.0"}),
    ],
)
def test_what_the_zoo_has(name: str, sites: set[str]) -> None:
    program, _ = of_zoo(name)
    found, skipped = find_units(program)
    assert {group.site for group in found} == sites
    # Each map of more than one output is taken or left with a reason.
    wide = {n for n, m in program.model.named_modules() if isinstance(m, nn.Linear) and m.out_features > 1}
    coupled = {site for group in found for site in group.coupled}
    assert {skip.site for skip in skipped} == wide - sites - coupled and all(skip.reason for skip in skipped)


@pytest.mark.parametrize("name", ["dcnv2", "dlrm_lists", "mmoe", "two_tower"])
def test_the_marks_say_what_the_graph_says(name: str) -> None:
    program, _ = of_zoo(name)
    groups = Widths(named(capture(program).model)).units().values()  # type: ignore[arg-type]  # a graph
    free = [group for group in groups if not group.reasons and group.width > 1]
    told = [(len(group.writers), group.width, len(group.readers)) for group in free]
    found = units_of(program).values()
    assert sorted(told) == sorted((1 + len(one.coupled), one.width, len(one.readers)) for one in found)


def test_columns_of_a_join_begin_where_its_other_parts_end() -> None:
    # torch-pruning drops the offset, and cuts tables and crosses along.
    program, entry = of_zoo("dcnv2")
    found = units_of(program)
    assert found["deep.3"].readers == (("head", tuple(range(26, 38))),)
    cut: Any = assert_cut_is_mask(program, {"deep.3": torch.tensor([0, 5, 11])}, entry.batch(9, rng(3)))
    assert cut.head.weight.shape == (1, 29) and cut.tables[0].weight is program.model.tables[0].weight  # type: ignore[index]
    assert "same columns" in reasons_of(program)["cross.0"]


def test_dot_products_by_triangle_are_left() -> None:
    # torch-pruning's own walk over this graph does not end.
    program, _ = of_zoo("dlrm")
    assert "mixed in one column of what top.0 reads" in reasons_of(program)["bottom.3"]


def test_bags_and_fields_beside_a_tower() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bag = nn.EmbeddingBag(20, 5, mode="sum")
            self.dense = nn.Sequential(nn.Linear(3, 7), nn.ReLU())
            self.norm, self.act = nn.BatchNorm1d(14), nn.PReLU(14)
            self.top = nn.Linear(14, 4)

        def forward(self, ids: Tensor, offsets: Tensor, dense: Tensor) -> Tensor:
            x = torch.cat([self.bag(ids, offsets), self.dense(dense), dense[:, :2]], 1)
            score: Tensor = self.top(self.act(self.norm(x)) if bool(ids.sum() >= 0) else x)
            return score

    model = Joined()
    with torch.no_grad():
        for tensor in (model.norm.weight, model.norm.running_mean, model.norm.running_var, model.act.weight):
            assert tensor is not None
            tensor.copy_(torch.rand(14, generator=rng(4)) + 0.5)
    batch = (
        torch.randint(20, (60,), generator=rng(1)),
        torch.arange(30) * 2,
        torch.randn(30, 3, generator=rng(2)),
    )
    program = program_of(model, *batch)
    places = tuple(range(5, 12))
    assert find_units(program) == (
        [ModuleGroup("dense.0", 7, (("top", places),), (("norm", places), ("act", places)))],
        [
            Skip(
                "prune neurons",
                "top",
                "the answer depends on its units by more than linear maps that can be cut",
            )
        ],
    )
    cut: Any = assert_cut_is_mask(program, {"dense.0": torch.tensor([1, 2, 6])}, batch)
    assert (cut.norm.num_features, cut.act.num_parameters, cut.top.in_features) == (10, 10, 10)
    assert cut.bag.weight is model.bag.weight and cut.top.bias is model.top.bias


def test_two_towers_that_one_map_reads_are_cut_at_once() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 5)
            self.top = tower(11, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            score: Tensor = self.top(torch.cat([self.left(x).tanh(), self.right(x).relu()], 1))
            return score

    x = torch.randn(30, 4, generator=rng())
    kept = {"left": torch.tensor([1, 4]), "right": torch.tensor([0, 3, 4]), "top.0": torch.tensor([2, 7])}
    cut: Any = assert_cut_is_mask(program_of(Joined(), x), kept, (x,))
    assert cut.top[0].weight.shape == (2, 5)


def test_several_heads_read_a_trunk_and_experts_go_together() -> None:
    program, entry = of_zoo("mmoe")
    found = units_of(program)
    eight = tuple(range(8))
    assert found["experts.0.3"] == ModuleGroup(
        "experts.0.3",
        8,
        (("heads.click.0", eight), ("heads.buy.0", eight)),
        (),
        ("experts.1.3", "experts.2.3"),
    )
    kept = {
        "experts.0.3": torch.tensor([0, 2, 7]),
        "experts.1.0": torch.tensor([3]),
        "heads.buy.0": torch.tensor([1, 2]),
    }
    assert_cut_is_mask(program, kept, entry.batch(33, rng(3)))


def test_a_gate_and_what_it_gates_go_together() -> None:
    program = around(
        lambda m, x, h: m.down(m.other(torch.sigmoid(m.gate(x))) * h),
        gate=nn.Linear(6, 8),
        other=nn.PReLU(8),
    )
    eight = tuple(range(8))
    assert units_of(program) == {
        "up": ModuleGroup("up", 8, (("down", eight),), (("other", eight),), ("gate",))
    }
    assert_cut_is_mask(program, {"up": torch.tensor([2, 3, 5])}, program.batch)


def test_a_tower_that_is_called_twice_reaches_two_columns() -> None:
    program = around(lambda m, x, h: m.top(torch.cat([h, x, torch.relu(m.up(-x))], 1)), top=nn.Linear(22, 2))
    expected = ModuleGroup("up", 8, (("top", tuple(range(8))), ("top", tuple(range(14, 22)))))
    assert units_of(program) == {"up": expected}
    assert_cut_is_mask(program, {"up": torch.tensor([0, 6])}, program.batch)


def test_shared_tables_stay_shared() -> None:
    program, entry = of_zoo("shared")
    cut: Any = assert_cut_is_mask(program, {"squash.0": torch.tensor([4, 5])}, entry.batch(7, rng(3)))
    assert cut.source.weight is cut.target.weight is program.model.source.weight  # type: ignore[union-attr]


def test_a_map_held_twice_and_in_a_list_is_cut_for_all_who_hold_it() -> None:
    model: Any = Around(lambda m, x, h: m.steps[0](h) if bool(x.sum() < 9e9) else m.again(h))
    model.again, model.steps = model.down, [model.down]
    program = program_of(model, torch.randn(30, 6, generator=rng(2)))
    cut: Any = assert_cut_is_mask(program, {"up": torch.tensor([1, 2])}, program.batch)
    assert cut.again is cut.down is cut.steps[0]


class Cached(nn.Module):
    """Remembers what it was given, in no tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None or self.last.shape != x.shape else x + 0 * self.last
        self.last = y
        return y


def _hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, args, output: output / 2)
    return linear


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _tried(m: Any, x: Tensor, h: Tensor) -> Any:
    """A model that catches what its modules raise."""
    try:
        return m.down(h if bool(h.isfinite().all()) else h[:1])
    except Exception:
        return m.down(torch.zeros(len(x), 8))


def _tied() -> dict[str, nn.Module]:
    one, other = nn.Linear(6, 8), nn.Linear(6, 8)
    other.weight = one.weight
    return {"up": one, "other": other}


@pytest.mark.parametrize(
    ("use", "modules", "reason"),
    [
        (lambda m, x, h: (m.down(h), h), dict, "the answer depends on its units"),
        (lambda m, x, h: (m.down(h), h.argmax(1)), dict, "the answer depends on its units"),
        (lambda m, x, h: {"y": m.down(h), "mean": float(h.mean())}, dict, "the answer depends on its units"),
        (lambda m, x, h: m.down(F.layer_norm(h, (8,))), dict, "several of its units are mixed"),
        (lambda m, x, h: m.down(h.softmax(1)), dict, "several of its units are mixed"),
        (lambda m, x, h: m.down(torch.cat([h[:, :7], h.norm(dim=1, keepdim=True)], 1)), dict, "several of its units"),
        (lambda m, x, h: m.part(h[:, 4:]), lambda: {"part": nn.Linear(4, 2)}, "part reads only some of its units"),
        (lambda m, x, h: m.down(h + h[:, :1]), dict, "several of its units"),
        (lambda m, x, h: m.down(h) + m.down(m.table(x[:, 0].long().abs())), lambda: {"table": nn.Embedding(9, 8)}, "down is called on its units and on something else"),
        (lambda m, x, h: m.down(h + m.table(x[:, 0].long().abs())), lambda: {"table": nn.Embedding(9, 8)}, "without some of its units the model fails"),
        (lambda m, x, h: m.down(h * m.scale), lambda: {"scale": torch.ones(8)}, "without some of its units the model fails"),
        (lambda m, x, h: m.down(h / math.sqrt(h.shape[1])), dict, "cutting its units is not masking them"),
        (lambda m, x, h: m.down(h * (h > 0.2).float().mean(1, keepdim=True)), dict, "cutting its units is not masking them"),
        (lambda m, x, h: m.down(h.view(len(h), 2, -1).flatten(1)), dict, "without some of its units the model fails"),
        (lambda m, x, h: m.down(h) if bool(h.isfinite().all()) else x, dict, "calls other linear maps"),
        (_tried, dict, "the model calls down otherwise"),
        (lambda m, x, h: m.down(h) + m.down.weight.sum(), dict, "down reads its units, and of that its weight is read"),
        (lambda m, x, h: m.down(h).sum(1) + m.up.bias.sum(), dict, "its bias is read by more than its own call"),
        (lambda m, x, h: m.odd(h), lambda: {"odd": Twice(8, 3)}, "the answer depends on its units"),
        (lambda m, x, h: m.down(h) + m.down(m.other(x)), _tied, "its weight or bias is another module's as well"),
        (lambda m, x, h: m.down(h), lambda: {"up": _hooked(nn.Linear(6, 8))}, "it has hooks"),
        (lambda m, x, h: m.down(h), lambda: {"up": parametrizations.weight_norm(nn.Linear(6, 8))}, "Parametrized"),
        (lambda m, x, h: m.down(h), lambda: {"up": parametrizations.spectral_norm(nn.Linear(6, 8))}, "Parametrized"),
        (lambda m, x, h: m.down(m.act(h)), lambda: {"act": Cached()}, "remembers"),
        (lambda m, x, h: m.down(torch.relu(m.same(h))) + m.down(h), lambda: {"same": nn.Linear(8, 8)}, "down is called on its units"),
        (lambda m, x, h: m.down(torch.relu(m.same(h)) + h), lambda: {"same": nn.Linear(8, 8)}, "same goes into some of the same columns"),
    ],
)  # fmt: skip
def test_what_is_left_says_why(
    use: Callable[..., Any], modules: Callable[[], dict[str, Any]], reason: str
) -> None:
    torch.manual_seed(1)
    program = around(use, **modules())
    before = snapshot(program.model)
    found, skipped = find_units(program)
    assert "up" not in {site for group in found for site in (group.site, *group.coupled)}
    said = {skip.site: skip.reason for skip in skipped}
    assert reason in said.get("up", said.get("", ""))
    assert_unchanged(program.model, before)


def test_a_model_that_writes_to_its_tensors_is_left() -> None:
    program, _ = of_zoo("counting")
    before = snapshot(program.model)
    found, skipped = find_units(program)
    assert not found and "writes to its own tensor 'calls'" in skipped[0].reason
    assert_unchanged(program.model, before)


def test_a_branch_that_only_the_calibration_takes_is_seen() -> None:
    def use(m: Any, x: Tensor, h: Tensor) -> Tensor:
        y: Tensor = m.down(h) + (h[:, :3] if bool(x.sum() > 1e4) else 0)
        return m.last(torch.relu(m.wide(y)))  # type: ignore[no-any-return]

    program = around(use, wide=nn.Linear(3, 4), last=nn.Linear(4, 1))
    assert set(units_of(program)) == {"up", "down", "wide"}
    rare = (torch.full((5, 6), 1e4),)
    both = replace(program, calibration=(program.batch, rare))
    assert set(units_of(both)) == {"wide"}
    said = reasons_of(both)
    assert "cutting its units is not masking them" in said["up"] and "the model fails" in said["down"]


def test_the_same_again_gives_the_same_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_pruning

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("no clock of a GPU is asked, and no gradient switched on")

    monkeypatch.setattr(torch.cuda, "Event", refused)
    monkeypatch.setattr(torch.cuda, "synchronize", refused)
    monkeypatch.setattr(torch, "enable_grad", refused)
    held = {
        name: (id(pruner), copy.deepcopy(vars(pruner)))
        for name, pruner in torch_pruning.pruner.function.PrunerBox.items()
    }
    program, entry = of_zoo("wide_deep")
    state, batch = torch.random.get_rng_state(), program.flat(entry.batch(8, rng(3)))
    kept = {"deep.0": torch.tensor([3, 9, 30]), "deep.4": torch.tensor([0, 15])}
    answers = []
    for _ in range(2):
        found, _ = find_units(program)
        answers.append(program.with_model(without(program, found, kept)).answers(batch))
    assert found == find_units(program)[0]
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
    assert torch.is_grad_enabled() and torch.equal(torch.random.get_rng_state(), state)
    assert held == {
        name: (id(pruner), vars(pruner)) for name, pruner in torch_pruning.pruner.function.PrunerBox.items()
    }


def test_frozen_stays_frozen_and_gradients_stay_behind() -> None:
    program = around(lambda m, x, h: m.down(m.norm(h)), norm=nn.BatchNorm1d(8))
    model: Any = program.model
    model.up.weight.requires_grad_(False)
    model.down.weight.grad = torch.ones(3, 8)
    cut: Any = without(program, units_of(program).values(), {"up": torch.tensor([1, 2, 4])})
    assert not cut.up.weight.requires_grad and cut.up.bias.requires_grad
    assert cut.down.weight.grad is None and torch.equal(model.down.weight.grad, torch.ones(3, 8))
    assert torch.equal(cut.up.weight, model.up.weight[[1, 2, 4]])
    assert cut.norm.running_mean.shape == (3,) and model.norm.running_mean.shape == (8,)


def test_a_cut_model_can_be_cut_again() -> None:
    program = around(lambda m, x, h: m.down(h))
    again = program.with_model(
        without(program, units_of(program).values(), {"up": torch.tensor([1, 2, 4, 7])})
    )
    assert units_of(again)["up"].width == 4
    cut: Any = without(again, units_of(again).values(), {"up": torch.tensor([0, 3])})
    assert torch.equal(cut.up.weight, program.model.up.weight[[1, 7]])  # type: ignore[union-attr, index]


def test_nothing_to_cut_is_a_copy_that_shares_all() -> None:
    program = around(lambda m, x, h: m.down(h))
    for kept in ({}, {"up": torch.arange(8)}):
        cut = without(program, units_of(program).values(), kept)
        assert cut is not program.model
        assert all(a is b for a, b in zip(cut.parameters(), program.model.parameters(), strict=True))


@pytest.mark.parametrize("kept", [[], [8], [-1], [1, 1], [2, 1]])
def test_numbers_that_are_no_units_are_refused(kept: list[int]) -> None:
    program = around(lambda m, x, h: m.down(h))
    with pytest.raises(InputError, match="up has units 0 to 7") as caught:
        without(program, units_of(program).values(), {"up": torch.tensor(kept)})
    assert caught.value.feature == "up"
    with pytest.raises(InputError, match="top is the site of none"):
        without(program, units_of(program).values(), {"top": torch.arange(3)})


def test_rows_of_what_a_reader_is_given_come_from_all_of_the_calibration() -> None:
    first, second = (torch.randn(1500, 6, generator=rng(seed)) for seed in (1, 2))
    model = Around(lambda m, x, h: m.down(h))
    program = program_of(model, first[:30], calibration=((first,), (second,)))
    seen = seen_by(program, find_units(program)[0])
    assert list(seen) == ["down"] and seen["down"].shape == (2048, 8)
    with torch.no_grad():
        right = torch.relu(model.up(torch.cat([first, second])))
    distances = torch.cdist(seen["down"], right)
    nearest = distances.argmin(1)
    assert float(distances.amin(1).max()) < 1e-3
    assert 900 < int((nearest < 1500).sum()) < 1150


def test_weights_are_replaced_on_the_draft_alone() -> None:
    program = around(lambda m, x, h: m.down(h))
    program.model.down.register_parameter("bias", None)  # type: ignore[union-attr, operator]
    before = snapshot(program.model)
    draft: Any = program.draft()
    weight, bias = torch.randn(3, 8).double(), torch.randn(3)
    replace_weights(draft, {"down": (weight, bias)})
    h = torch.randn(5, 8)
    assert (
        torch.allclose(draft.down(h), F.linear(h, weight.float(), bias))
        and draft.down.weight.dtype is torch.float32
    )
    replace_weights(draft, {"down": (weight, None)})
    assert draft.down.bias is None and draft.up.weight is program.model.up.weight  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"down takes a weight \(3, 8\), got weight \(3, 7\)"):
        replace_weights(draft, {"down": (weight[:, 1:], None)})
    assert_unchanged(program.model, before)


def test_torch_pruning_is_imported_where_something_is_cut() -> None:
    code = "import sys, fastrec.techniques.pruning.modules; assert 'torch_pruning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
