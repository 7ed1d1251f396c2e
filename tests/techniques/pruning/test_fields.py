"""Pruned fields: which go and in what order, what stands for them, what fusion makes of it, and which stay, with the reason."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec import compress
from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.errors import IdOutOfRangeError, InputError, TechniqueError
from fastrec.graph import constant, copy_graph, is_call, value
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, PruneFields, Technique
from tests.checks import rolled_back
from tests.techniques.fusion.rewrites import asked_program

aten = torch.ops.aten
F, V, WIDTH = 6, 20, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(rows: int, columns: int = F, seed: int = 0, low: int = 0, high: int = V) -> Tensor:
    return torch.randint(low, high, (rows, columns), generator=torch.Generator().manual_seed(seed))


class Ranker(nn.Module):
    """An embedding and a first-order weight for each column, sums of pairs, a tower; what column 2 gives counts for little, column 4's for least."""

    def __init__(self) -> None:
        super().__init__()
        scales = [1.0, 1.0, 0.1, 1.0, 0.01, 1.0]
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(s * drawn(V, WIDTH, seed=k)) for k, s in enumerate(scales)
        )
        self.weights = nn.ModuleList(
            nn.Embedding.from_pretrained(s * drawn(V, 1, seed=9 + k)) for k, s in enumerate(scales)
        )
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(F * WIDTH + 3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, dense: Tensor) -> Tensor:
        rows = torch.stack([table(x[:, k]) for k, table in enumerate(self.tables)], 1)
        first = torch.cat([table(x[:, k]) for k, table in enumerate(self.weights)], 1).sum(1, keepdim=True)
        pairs = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        out: Tensor = first + pairs + self.tower(torch.cat([rows.flatten(1), dense], 1))
        return out


def captured(model: nn.Module, *batch: Tensor, calibration: tuple[Tensor, ...] = ()) -> Program:
    program = capture(Program.read(model.eval(), batch))
    return replace(program, calibration=(calibration,) if calibration else ())


def applied(program: Program, *techniques: Technique) -> tuple[fx.GraphModule, Applied]:
    made = Applied(program.model)
    for technique in techniques:
        made = technique.apply(program)
        program = program.with_model(made.model)
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made


def with_means(model: Ranker, columns: tuple[int, ...], seen: Tensor) -> Ranker:
    """The model whose tables of these columns hold the mean of the rows that are looked up, in every row."""
    other = copy.deepcopy(model)
    for column in columns:
        for table in (other.tables[column], other.weights[column]):
            rows = table.weight[seen[:, column]].double().mean(0)
            table.weight = nn.Parameter(rows.float().expand(V, -1).contiguous(), requires_grad=False)
    return other


RANKER = Ranker()
SEEN, DENSE = ids(300, low=3), drawn(300, 3)
PROGRAM = captured(RANKER, SEEN[:8], DENSE[:8], calibration=(SEEN, DENSE))


@pytest.mark.parametrize("by", ["mean", "permutation"])
def test_the_least_important_fields_become_their_means(by: Any) -> None:
    technique = PruneFields(keep=0.66, by=by)
    graph, made = applied(PROGRAM, technique)
    assert [change.site for change in made.changes] == ["x[:, 4]", "x[:, 2]"] and not made.skipped
    expected = with_means(RANKER, (4, 2), SEEN)
    for rows in (0, 1, 33):
        batch = ids(rows, seed=5), drawn(rows, 3, seed=6)
        torch.testing.assert_close(graph(*batch)[0], expected(*batch), rtol=1e-5, atol=1e-5)
    assert tensor_bytes(graph) < tensor_bytes(PROGRAM.model) - 2 * V * (WIDTH + 1) * 4 + 100
    word = "as its mean" if by == "mean" else "shuffled"
    assert re.fullmatch(
        f"not read any more: 2 lookups a row and {V * (WIDTH + 1) * 4} bytes of tables less; {word} it moves the answers "
        r"by [\d.e-]+ of their spread, all up to it gone by [\d.e-]+",
        made.changes[1].detail,
    )
    again = technique.apply(PROGRAM.with_model(graph))
    assert again.changes == () and "no other goes" in again.skipped[0].reason


def test_what_is_said_of_the_loss_is_measured() -> None:
    change = PruneFields(fields=("x[:, 3]",)).apply(PROGRAM).changes[0]
    with torch.no_grad():
        right, off = RANKER(SEEN, DENSE), with_means(RANKER, (3,), SEEN)(SEEN, DENSE)
    moved = float((off - right).norm() / (right - right.mean()).norm())
    assert f"moves the answers by {moved:.2g} of their spread" in change.detail


def test_fusion_takes_the_constants_into_biases() -> None:
    for names, width in ((("x[:, 4]",), F - 1), (("x[:, 4]", "x[:, 0]", "x[:, 2]"), F - 3)):
        graph, made = applied(PROGRAM, PruneFields(fields=names), Fuse(fold_bytes=0))
        assert not rolled_back(made)
        first = min(node for node in graph.graph.nodes if is_call(node, aten.linear.default))
        assert (
            value(first.args[0]).shape[1] == width * WIDTH + 3 and constant(graph, first.args[2]) is not None
        )
        (lookup,) = (node for node in graph.graph.nodes if is_call(node, aten.embedding.default))
        assert value(lookup.args[0]).shape[0] == V * width and value(lookup.args[1]).shape[1] == width
        columns = tuple(int(name[-2]) for name in names)
        batch = ids(33, seed=5), drawn(33, 3, seed=6)
        torch.testing.assert_close(
            graph(*batch)[0], with_means(RANKER, columns, SEEN)(*batch), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("by", ["mean", "permutation"])
def test_no_more_go_where_answers_would_be_more_than_half_off(by: Any) -> None:
    made = PruneFields(keep=0.1, by=by).apply(PROGRAM)
    gone = [change.site for change in made.changes]
    assert gone[:2] == ["x[:, 4]", "x[:, 2]"] and len(gone) < F - 1
    said = [float(change.detail.rpartition("gone by ")[2]) for change in made.changes[1:]]
    assert max(said) <= 0.5
    (skip,) = made.skipped
    found = re.fullmatch(
        rf"answers of the calibration would be (\d+)% off without it and the {len(gone)} before it",
        skip.reason,
    )
    assert found and int(found[1]) >= 50 and skip.site not in gone
    # What is half off already is not the measure of what is left.
    (skip_again,) = PruneFields(keep=0.1, by=by).apply(PROGRAM.with_model(made.model)).skipped
    assert skip_again.site == "" and "no other goes" in skip_again.reason
    # Who names them has them go.
    named = PruneFields(fields=(*gone, skip.site), by=by).apply(PROGRAM)
    assert {change.site for change in named.changes} == {*gone, skip.site} and not named.skipped
    assert f"gone by {int(found[1]) / 100:.1g}" in named.changes[-1].detail


def test_answers_that_are_not_finite_let_no_field_go() -> None:
    odd = Parts(lambda m, user, item: (m.one(user) * m.one(item[:, 0])).log())
    users, items = ids(50, 1)[:, 0], ids(50, 1, seed=1)
    made = PruneFields(keep=0.5).apply(captured(odd, users, items))
    assert made.changes == ()
    assert made.skipped[0].reason == "answers of the calibration would not be finite without it"


def test_each_field_is_measured_with_those_that_went() -> None:
    class Sums(nn.Module):
        """Columns 0 and 1 nearly cancel where they hold the same ids, as they always do."""

        def __init__(self) -> None:
            super().__init__()
            table = drawn(V, 1)
            self.parts = nn.ModuleList(
                nn.Embedding.from_pretrained(one) for one in (table, -0.9 * table, 0.95 * table)
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.parts[0](x[:, 0]) + self.parts[1](x[:, 1]) + self.parts[2](x[:, 2])
            return out

    seen = ids(400, 3)
    seen[:, 1] = seen[:, 0]
    technique = PruneFields(fields=("x[:, 0]", "x[:, 1]", "x[:, 2]"))
    made = technique.apply(captured(Sums(), seen[:8], calibration=(seen,)))
    # Alone, column 0 is worth most.
    assert [change.site for change in made.changes] == ["x[:, 1]", "x[:, 0]", "x[:, 2]"]


class Shared(nn.Module):
    """One table for all columns, by offsets: looked up, added up and averaged."""

    def __init__(self, columns: int = 3) -> None:
        super().__init__()
        self.offsets = torch.arange(columns) * V
        self.table = nn.Embedding.from_pretrained(drawn(columns * V, WIDTH))
        self.sums = nn.EmbeddingBag.from_pretrained(drawn(columns * V, 1, seed=1), mode="sum")
        self.means = nn.EmbeddingBag.from_pretrained(drawn(columns * V, 2, seed=2), mode="mean")
        self.odd = nn.Embedding.from_pretrained(drawn(columns * V, 3, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.offsets
        return torch.cat(
            [self.table(x).flatten(1), self.sums(x), self.means(x), self.odd(x[:, [2, 0]]).flatten(1)], 1
        )


@pytest.mark.parametrize("columns", [(1,), (0, 2), (0, 1, 2)])
def test_columns_of_one_table_are_fields(columns: tuple[int, ...]) -> None:
    model, seen = Shared(), ids(200, 3)
    program = captured(model, seen[:8], calibration=(seen,))
    names = tuple(f"x[:, {column}]" for column in columns)
    graph, made = applied(program, PruneFields(fields=names))
    assert {change.site for change in made.changes} == set(names)
    assert all(change.detail.startswith("not read any more") for change in made.changes)
    other = copy.deepcopy(model)
    for table in (other.table, other.sums, other.means, other.odd):
        weight = table.weight.clone()
        for column in columns:
            rows = slice(column * V, column * V + V)
            weight[rows] = weight[seen[:, column] + column * V].mean(0)
        table.weight = nn.Parameter(weight, requires_grad=False)
    for rows in (1, 33):
        batch = ids(rows, 3, seed=5)
        torch.testing.assert_close(graph(batch)[0], other(batch), rtol=1e-5, atol=1e-5)
    whole, _ = applied(program.with_model(graph), Fuse())
    torch.testing.assert_close(whole(batch)[0], other(batch), rtol=1e-5, atol=1e-5)
    assert PruneFields(fields=names).apply(program.with_model(graph)).changes == ()
    # The table goes when the last of its fields does.
    assert (tensor_bytes(graph) < 200) == (len(columns) == 3)


class Events(nn.Module):
    def __init__(self, items: Tensor, bag: bool = False) -> None:
        super().__init__()
        self.items = (
            nn.EmbeddingBag.from_pretrained(items, mode="sum") if bag else nn.Embedding.from_pretrained(items)
        )
        self.users = nn.Embedding.from_pretrained(drawn(V, WIDTH, seed=1))
        self.head = nn.Linear(2 * WIDTH, 1)

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        rows = self.items(history)
        out: Tensor = self.head(torch.cat([self.users(user), rows if rows.ndim == 2 else rows.sum(1)], 1))
        return out


@pytest.mark.parametrize("bag", [False, True])
def test_a_history_is_one_field_and_stays_where_it_is_padded(bag: bool) -> None:
    items, users, seen = drawn(V, WIDTH), ids(200, 1)[:, 0], ids(200, 5, seed=1)
    original = Events(items, bag)
    program = captured(original, users[:8], seen[:8], calibration=(users, seen))
    graph, made = applied(program, PruneFields(fields=("history",)))
    assert "5 lookups a row" in made.changes[0].detail
    model = Events(items[seen].mean((0, 1)).expand(V, -1).contiguous(), bag)
    model.head.load_state_dict(original.head.state_dict())
    torch.testing.assert_close(
        graph(users[:9], seen[:9])[0], model(users[:9], seen[:9]), rtol=1e-5, atol=1e-5
    )
    items[0] = 0
    padded = captured(Events(items, bag), users[:8], seen[:8], calibration=(users, seen))
    made = PruneFields(fields=("user", "history")).apply(padded)
    assert [change.site for change in made.changes] == ["user"]
    assert made.skipped[0].site == "history" and "its histories are padded" in made.skipped[0].reason


class Odd(nn.Module):
    """Tables of id % m and id // m, a crossed pair, an output matrix, and a lookup that is an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = (nn.Embedding.from_pretrained(drawn(5, WIDTH, seed=k)) for k in (1, 2))
        self.cross = nn.Embedding.from_pretrained(drawn(V, WIDTH, seed=3))
        self.items = nn.Embedding.from_pretrained(drawn(V, WIDTH, seed=4))

    def forward(self, x: Tensor, item: Tensor) -> tuple[Tensor, ...]:
        user = self.low(x[:, 0] % 5) * self.high(x[:, 0] // 5)
        crossed = self.cross((x[:, 0] * 31 + x[:, 1]) % V)
        return (user + crossed + self.items(item)) @ self.items.weight.t(), self.items(item)


def test_what_one_column_looks_up_is_one_field() -> None:
    seen, item = ids(200, 2), ids(200, 1, seed=1)[:, 0]
    program = captured(Odd(), seen[:8], item[:8], calibration=(seen, item))
    with pytest.raises(InputError, match=re.escape("it has x[:, 0], x, item")):
        PruneFields(fields=("x[:, 1]",)).apply(program)
    graph, made = applied(program, PruneFields(fields=("x[:, 0]",)))
    assert made.changes[0].detail.startswith(
        "x[:, 0] is still read: 2 lookups a row and 160 bytes of tables less"
    )
    assert sum(is_call(node, aten.embedding.default) for node in graph.graph.nodes) == 3
    graph, made = applied(program, PruneFields(fields=("item",)))
    # The table is the output matrix as well, and stays.
    assert made.changes[0].detail.startswith("not read any more: 2 lookups a row and 0 bytes of tables less")
    _, rows = graph(seen[:4], item[:4])
    mean = Odd().items.weight[item].double().mean(0).float()
    torch.testing.assert_close(rows, mean.expand(4, -1))
    # What is given away is the caller's to write to.
    rows.add_(1)
    torch.testing.assert_close(graph(seen[:4], item[:4])[1], mean.expand(4, -1))


def test_columns_of_a_request_have_the_names_of_the_callers_features() -> None:
    program, once = asked_program(RANKER, {"x": [0, 2, 3], "dense": True}, SEEN[:16], DENSE[:16])
    batches = [[SEEN[k : k + 20], DENSE[k : k + 20]] for k in range(0, 300, 20)]
    same = [once.same(batch) for batch in batches]
    program = replace(program, calibration=tuple(tuple(once.one(batch)) for batch in same))
    for by in ("mean", "permutation"):
        graph, made = applied(program, PruneFields(keep=0.66, by=by))  # type: ignore[arg-type]  # a string of two
        assert [change.site for change in made.changes] == ["x[:, 4]", "x[:, 2]"]
    seen = torch.cat([batch[0] for batch in same])
    expected = with_means(RANKER, (4, 2), seen)(*same[0])
    torch.testing.assert_close(graph(*once.one(same[0]))[0], expected, rtol=1e-5, atol=1e-5)
    fused, made = applied(program.with_model(graph), Fuse())
    assert not rolled_back(made)
    torch.testing.assert_close(fused(*once.one(same[0]))[0], expected, rtol=1e-4, atol=1e-4)


class Parts(nn.Module):
    """Runs a function of two embeddings, for what stays."""

    def __init__(self, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        self.one = nn.Embedding.from_pretrained(drawn(V, WIDTH))
        self.bag = nn.EmbeddingBag.from_pretrained(drawn(V, WIDTH, seed=1), mode="max")

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.call(self, user, item)


def test_what_stays_says_why() -> None:
    users, items = ids(50, 1)[:, 0], ids(50, 1, seed=1)
    keep = PruneFields(keep=0.5)
    largest = captured(Parts(lambda m, user, item: m.one(user) * m.bag(item)), users, items)
    made = PruneFields(fields=("user", "item")).apply(largest)
    assert [change.site for change in made.changes] == ["user"]
    assert [(skip.site, skip.reason) for skip in made.skipped] == [
        ("item", "of model.bag.weight: its bags are maxima")
    ]
    assert keep.apply(captured(Parts(lambda m, user, item: m.one(user) + item), users, items)).changes == ()
    odd = Parts(lambda m, user, item: m.one(user) * m.one(item[:, 0]))
    odd.one.weight[users[0]] = torch.inf
    reasons = [skip.reason for skip in keep.apply(captured(odd, users, items)).skipped]
    assert "rows of model.one.weight are not finite" in reasons
    graph = copy_graph(PROGRAM.model)  # type: ignore[arg-type]  # captured, so a graph
    next(node for node in graph.graph.nodes if is_call(node, aten.mul.Tensor)).target = aten.mul_.Tensor
    (skip,) = keep.apply(PROGRAM.with_model(graph)).skipped
    assert skip.reason == "the graph writes in place: values seen may change"
    one = captured(RANKER, SEEN[:8], DENSE[:8], calibration=(SEEN[:1], DENSE[:1]))
    (skip,) = keep.apply(one).skipped
    assert skip.reason == "calibration has one row, on which no field is worth more than another"


def test_names_say_what_goes_and_what_stays() -> None:
    made = PruneFields(fields=("x[:, 0]", "x[:, 4]")).apply(PROGRAM)
    assert [change.site for change in made.changes] == ["x[:, 4]", "x[:, 0]"]
    made = PruneFields(keep=0.8, without=("x[:, 4]",)).apply(PROGRAM)
    assert [change.site for change in made.changes] == ["x[:, 2]"]
    for setting in ("fields", "without"):
        with pytest.raises(InputError, match=re.escape(f"PruneFields({setting}=...) has 'x[:, 9]'")):
            PruneFields(**{setting: ("x[:, 9]",)}).apply(PROGRAM)  # type: ignore[arg-type]  # by name


def test_milder_settings_drop_the_less_important_half() -> None:
    technique = PruneFields(fields=tuple(f"x[:, {column}]" for column in (1, 2, 3, 4)))
    changes = technique.apply(PROGRAM).changes
    milder = technique.milder(PROGRAM, changes)
    sites = [change.site for change in changes]
    assert len(sites) == 4 and [one.fields for one in milder] == [tuple(sites[:2]), tuple(sites[:1])]  # type: ignore[attr-defined]  # its own settings
    assert milder[-1].milder(PROGRAM, changes[:1]) == ()
    assert [change.site for change in milder[0].apply(PROGRAM).changes] == sites[:2]


def test_wrong_settings_are_named() -> None:
    for settings, said in (
        ({"keep": 0}, "a share above 0 to below 1"),
        ({"keep": 1.0}, "a share above 0 to below 1"),
        ({"fields": ["x"]}, "a tuple of names"),
        ({"without": "x"}, "a tuple of names"),
        ({"by": "gain"}, "'mean' or 'permutation'"),
    ):
        with pytest.raises(InputError, match=said):
            PruneFields(**settings)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TechniqueError, match="capture the program first"):
        PruneFields().apply(Program.read(RANKER, (SEEN[:8], DENSE[:8])))
    with pytest.raises(TechniqueError, match="looks up row 20"):
        PruneFields().apply(captured(RANKER, SEEN[:8], DENSE[:8], calibration=(SEEN + 1, DENSE)))


def test_inputs_that_are_not_read_are_still_taken_and_checked() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = (nn.Embedding.from_pretrained(drawn(V, WIDTH, seed=k)) for k in (0, 1))
            self.head = nn.Linear(2 * WIDTH, 1)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            out: Tensor = self.head(torch.cat([0.01 * self.users(user), self.items(item)], 1))
            return out

    torch.manual_seed(0)
    model, users, items = Pair().eval(), ids(256, 1)[:, 0], ids(256, 1, seed=1)[:, 0]
    fast = compress(
        model,
        {"user": users[:16], "item": items[:16]},
        recipe=[PruneFields(keep=0.5), Fuse()],
        calibration=[{"user": users, "item": items}],
        backends=[Eager(), OnnxRuntime()],
        seconds=3,
        batch_sizes=(16,),
        progress=False,
    )
    step = fast.report.steps[0]
    assert [change.site for change in step.changes] == ["user"]
    right = model(users[:16], items[:16])
    torch.testing.assert_close(fast(user=users[:16], item=items[:16]), right, rtol=0.1, atol=0.1)
    with pytest.raises(IdOutOfRangeError, match="'user'"):
        fast(user=users[:16] + V, item=items[:16])
