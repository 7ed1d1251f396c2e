"""Many lookups, one gather: equal bit by bit, whatever form the ids have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fastrec.errors import CaptureError
from fastrec.graph import is_call, sweep
from fastrec.techniques.fusion.stacked_lookups import stack_lookups

from .rewrites import graph_of

aten = torch.ops.aten
SIZES = (0, 1, 2, 3, 33)
Call = Callable[..., tuple[Tensor, ...]]


def calls(graph: fx.GraphModule, *targets: object) -> int:
    return sum(is_call(node, *targets) for node in graph.graph.nodes)


def stacked(graph: fx.GraphModule) -> fx.GraphModule:
    assert stack_lookups(graph)
    sweep(graph)
    return graph


def assert_moved(graph: fx.GraphModule, model: nn.Module) -> None:
    """Each original table is where the record says."""
    for original, (target, row, rows, column, columns) in graph.meta["moved"].items():
        table = model.get_parameter(original.removeprefix("model."))
        assert torch.equal(graph.get_buffer(target)[row : row + rows, column : column + columns], table)


class Fields(nn.Module):
    """Fields of a packed id matrix, each with an embedding and a first-order weight."""

    def __init__(self, rows: Sequence[int], width: int, first_order: bool = True) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, width) for count in rows)
        self.weights = nn.ModuleList(nn.Embedding(count, 1) for count in rows if first_order)

    def forward(self, x: Tensor) -> Tensor:
        deep = [table(x[:, field]) for field, table in enumerate(self.embeddings)]
        wide = [table(x[:, field]) for field, table in enumerate(self.weights)]
        return torch.cat([*deep, *wide], dim=1)


def test_packed_fields_with_first_order_weights_become_one_gather() -> None:
    rows = (7, 3, 5, 11)
    model = Fields(rows, 16)
    ids = torch.stack([torch.randint(count, (3,)) for count in rows], 1)
    graph = stacked(graph_of(model, ids))
    assert calls(graph, aten.embedding.default) == 1
    assert calls(graph, aten.add.Tensor) == 1
    assert calls(graph, aten.stack.default, aten.index_select.default) == 0
    assert_moved(graph, model)
    assert len(graph.meta["moved"]) == 8
    for size in SIZES:
        batch = torch.stack([torch.randint(count, (size,)) for count in rows], 1)
        assert torch.equal(graph(batch)[0], model(batch))


def test_added_bytes_are_the_bytes_of_the_moved_tables() -> None:
    model = Fields((7, 3, 5), 4)
    graph = graph_of(model, torch.randint(3, (3, 3)))
    (change,) = stack_lookups(graph)
    assert change.added_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert change.rule == "stack lookups"


def test_a_second_pass_finds_nothing_left() -> None:
    graph = stacked(graph_of(Fields((7, 3, 5), 4), torch.randint(3, (3, 3))))
    before = str(graph.graph)
    assert stack_lookups(graph) == []
    assert str(graph.graph) == before


def test_two_lookups_are_left_alone() -> None:
    graph = graph_of(Fields((7, 3), 4, first_order=False), torch.randint(3, (3, 2)))
    assert stack_lookups(graph) == []
    assert "moved" not in graph.meta


def test_the_model_and_its_tables_are_not_written_to() -> None:
    model = Fields((7, 3, 5), 4)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    stacked(graph_of(model, torch.randint(3, (3, 3))))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1]


def test_packed_floats_with_dense_columns_between() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(count, 4) for count in (5, 6, 7))

        def forward(self, x: Tensor) -> Tensor:
            columns = zip(self.tables, (4, 0, 1), strict=True)
            looked = [table(x[:, column].long()) for table, column in columns]
            return torch.cat([*looked, x[:, 2:4]], 1)

    model = Packed()
    graph = stacked(graph_of(model, torch.rand(3, 5) * 5))
    assert calls(graph, aten.embedding.default) == 1
    assert calls(graph, aten.to.dtype) == 1
    for size in SIZES:
        batch = torch.rand(size, 5) * 5
        assert torch.equal(graph(batch)[0], model(batch))


def test_buckets_of_each_field_become_one_remainder() -> None:
    class Hashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(count, 4) for count in (5, 6, 7))

        def forward(self, x: Tensor) -> Tensor:
            sizes = [table.num_embeddings for table in self.tables]
            ids = [(x[:, field] % size).clamp(0, size - 2) for field, size in enumerate(sizes)]
            return torch.cat([table(found) for table, found in zip(self.tables, ids, strict=True)], 1)

    model = Hashed()
    graph = stacked(graph_of(model, torch.randint(10**6, (3, 3))))
    assert calls(graph, aten.remainder.Tensor) == 1
    assert calls(graph, aten.clamp.Tensor) == 1
    assert calls(graph, aten.remainder.Scalar, aten.clamp.default, aten.select.int) <= 3
    for size in SIZES:
        batch = torch.randint(-(10**6), 10**6, (size, 3))
        assert torch.equal(graph(batch)[0], model(batch))


class Shared(nn.Module):
    """Item, history and five user fields; the item table is read twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.item = nn.Embedding(11, 4, padding_idx=0)
        self.fields = nn.ModuleList(nn.Embedding(5, 4) for _ in range(5))
        self.tied = tied

    def forward(self, item: Tensor, history: Tensor, fields: Tensor) -> Tensor:
        looked = [table(fields[:, field]) for field, table in enumerate(self.fields)]
        taste = self.item(history).mean(1)
        out = torch.cat([*looked, self.item(item), taste], 1)
        return torch.cat([out, taste @ self.item.weight.T], 1) if self.tied else out

    @staticmethod
    def batch(size: int) -> tuple[Tensor, ...]:
        return torch.randint(11, (size,)), torch.randint(11, (size, 6)), torch.randint(5, (size, 5))


def test_a_shared_table_is_one_segment_and_its_history_needs_no_offset() -> None:
    model = Shared(tied=False)
    graph = stacked(graph_of(model, *Shared.batch(3)))
    assert calls(graph, aten.embedding.default) == 2
    assert calls(graph, aten.add.Tensor) == 1
    assert graph.meta["moved"]["model.item.weight"][1:] == (0, 11, 0, 4)
    for size in SIZES:
        batch = Shared.batch(size)
        assert torch.equal(graph(*batch)[0], model(*batch))


def test_tied_weights_are_not_moved() -> None:
    model = Shared(tied=True)
    graph = stacked(graph_of(model, *Shared.batch(3)))
    assert "model.item.weight" not in graph.meta["moved"]
    assert len(graph.meta["moved"]) == 5
    for size in SIZES:
        batch = Shared.batch(size)
        assert torch.allclose(graph(*batch)[0], model(*batch), atol=1e-6)


def test_several_ids_of_one_tied_table_become_one_gather_without_a_copy() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            looked = [self.table(x[:, column]) for column in range(4)]
            return torch.cat(looked, 1), looked[0] @ self.table.weight.T

    model = Tied()
    graph = graph_of(model, torch.randint(9, (3, 4)))
    (change,) = stack_lookups(graph)
    sweep(graph)
    assert change.added_bytes == 0
    assert calls(graph, aten.embedding.default) == 1
    batch = torch.randint(9, (33, 4))
    assert torch.equal(graph(batch)[0], model(batch)[0])


def test_ids_from_another_lookup_stay_behind_it() -> None:
    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            looked = [table(x[:, field]) for field, table in enumerate(self.tables) if field < 5]
            return torch.cat([*looked, self.tables[5](looked[0].argmax(1))], 1)

    model = Chained()
    graph = stacked(graph_of(model, torch.randint(5, (3, 5))))
    assert calls(graph, aten.embedding.default) == 2
    assert "model.tables.5.weight" not in graph.meta["moved"]
    for size in SIZES:
        batch = torch.randint(5, (size, 5))
        assert torch.equal(graph(batch)[0], model(batch))


def test_a_table_that_is_renormalised_in_place_is_left_alone() -> None:
    class Renormalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norms = (1.0, None, None, None, None)
            self.tables = nn.ModuleList(nn.Embedding(5, 4, max_norm=norm) for norm in norms)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([table(x[:, field]) for field, table in enumerate(self.tables)], 1)

    # It writes to its table on each call, so there is no graph to stack lookups in.
    with pytest.raises(CaptureError, match=r"writes to its own tensor 'model.tables.0.weight'"):
        graph_of(Renormalised(), torch.randint(5, (3, 5)))


def test_a_lookup_that_is_written_into_is_left_alone() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            looked = [table(x[:, field]) for field, table in enumerate(self.tables)]
            doubled = looked[0].clone()
            looked[0].mul_(2)
            return torch.cat([*looked, self.tables[0](x[:, 0]), doubled], 1)

    model = Written()
    graph = stacked(graph_of(model, torch.randint(5, (3, 4))))
    for size in SIZES:
        batch = torch.randint(5, (size, 4))
        assert torch.equal(graph(batch)[0], model(batch))


def test_a_view_of_a_lookup_is_still_allowed() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep, self.wide = nn.Embedding(9, 4), nn.Embedding(9, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.deep(x).view(-1, 12), self.wide(x).view(-1, 3)], 1)

    model = Viewed()
    graph = stacked(graph_of(model, torch.randint(9, (3, 3))))
    assert calls(graph, aten.embedding.default) == 1
    for size in (1, 2, 3, 33):
        batch = torch.randint(9, (size, 3))
        assert torch.equal(graph(batch)[0], model(batch))


def test_columns_of_one_keep_their_axis_and_vectors_are_stacked_once() -> None:
    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(6))

        def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
            looked = [table(ids) for table, ids in zip(self.tables, (a, b, c, d, e, f), strict=True)]
            return torch.cat([*looked[:3], *(rows.unsqueeze(1) for rows in looked[3:])], 1)

    def batch(size: int) -> list[Tensor]:
        columns = [torch.randint(5, (size, 1)) for _ in range(3)]
        return [*columns, *(torch.randint(5, (size,), dtype=torch.int32) for _ in range(3))]

    model = Separate()
    graph = stacked(graph_of(model, *batch(3)))
    assert calls(graph, aten.embedding.default) == 1
    assert calls(graph, aten.stack.default) == 1
    for size in SIZES:
        given_batch = batch(size)
        assert torch.equal(graph(*given_batch)[0], model(*given_batch))


def test_tables_read_by_the_same_history_share_a_row() -> None:
    class Histories(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep, self.other, self.wide = nn.Embedding(9, 8), nn.Embedding(8, 8), nn.Embedding(9, 2)

        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            taste = torch.cat(
                [self.deep(history).sum(1), self.other(history).sum(1), self.wide(history).sum(1)], 1
            )
            return torch.cat([taste, self.deep(item)], 1)

    model = Histories()
    graph = stacked(graph_of(model, torch.randint(8, (3, 5)), torch.randint(8, (3,))))
    assert calls(graph, aten.embedding.default) == 3
    # `other` has another number of rows, so it is a table of its own
    assert sorted(graph.meta["moved"]) == ["model.deep.weight", "model.wide.weight"]
    assert_moved(graph, model)
    for size in SIZES:
        history, item = torch.randint(8, (size, 5)), torch.randint(8, (size,))
        assert torch.allclose(graph(history, item)[0], model(history, item), atol=1e-6)


def test_ids_that_are_written_into_are_not_taken_for_others() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            first = x.sort(1).values
            second = x.sort(1).values
            first.clamp_(max=2)
            looked = [table(second[:, field]) for field, table in enumerate(self.tables)]
            return torch.cat([*looked, self.tables[0](first[:, 4])], 1)

    model = Written()
    graph = graph_of(model, torch.randint(9, (3, 5)))
    stack_lookups(graph)
    sweep(graph)
    for size in SIZES:
        batch = torch.randint(9, (size, 5))
        assert torch.equal(graph(batch)[0], model(batch))


@pytest.mark.parametrize(("narrow_rows", "gathers"), [(6, 1), (400_000, 2)])
def test_narrow_tables_are_padded_only_where_it_is_cheap(narrow_rows: int, gathers: int) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (4, 4, 4, 3, 3, 3)
            rows = (5, 5, 5, narrow_rows, narrow_rows, narrow_rows)
            self.tables = nn.ModuleList(nn.Embedding(*shape) for shape in zip(rows, widths, strict=True))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([table(x[:, field]) for field, table in enumerate(self.tables)], 1)

    model = Mixed()
    graph = stacked(graph_of(model, torch.randint(5, (3, 6))))
    assert calls(graph, aten.embedding.default) == gathers
    batch = torch.randint(5, (33, 6))
    assert torch.equal(graph(batch)[0], model(batch))
    assert_moved(graph, model)


@dataclass(frozen=True)
class Use:
    """One lookup: which table, which input form, which column, which arithmetic."""

    table: int
    form: str
    column: int
    change: str


FORMS = ("packed", "floats", "vector", "int32", "column", "split", "history")
CHANGES = ("none", "modulo", "shift", "clamp")


class Drawn(nn.Module):
    """Any mix of tables and id forms; every lookup is an output."""

    def __init__(self, shapes: Sequence[tuple[int, int]], uses: Sequence[Use]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(*shape) for shape in shapes)
        self.uses = tuple(uses)

    def forward(
        self, packed: Tensor, floats: Tensor, vector: Tensor, int32: Tensor, column: Tensor, history: Tensor
    ) -> Tensor:
        looked: list[Tensor] = []
        for use in self.uses:
            ids = {
                "packed": packed[:, use.column],
                "floats": floats[:, use.column].long(),
                "vector": vector,
                "int32": int32,
                "column": column,
                "split": packed.split(1, dim=1)[use.column],
                "history": history,
            }[use.form]
            table = self.tables[use.table]
            rows = table.num_embeddings
            if use.change == "modulo":
                ids = ids % rows
            elif use.change == "shift":
                ids = (ids + 1).clamp(max=rows - 1)
            elif use.change == "clamp":
                ids = ids.clamp(0, rows - 1)
            looked.append(table(ids).flatten(1))
        # the plain inputs are outputs as well, so that all batch sizes are one size
        return torch.cat([*looked, packed, floats, vector[:, None], int32[:, None], column, history], 1)

    @staticmethod
    def batch(size: int, rows: int) -> tuple[Tensor, ...]:
        return (
            torch.randint(rows, (size, 4)),
            torch.randint(rows, (size, 4)).float(),
            torch.randint(rows, (size,)),
            torch.randint(rows, (size,), dtype=torch.int32),
            torch.randint(rows, (size, 1)),
            torch.randint(rows, (size, 5)),
        )


@st.composite
def drawn_models(draw: st.DrawFn) -> Drawn:
    widths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=2))
    shapes = draw(st.lists(st.tuples(st.integers(1, 50), st.sampled_from(widths)), min_size=1, max_size=8))
    use = st.builds(
        Use,
        st.integers(0, len(shapes) - 1),
        st.sampled_from(FORMS),
        st.integers(0, 3),
        st.sampled_from(CHANGES),
    )
    return Drawn(shapes, draw(st.lists(use, min_size=1, max_size=16)))


@settings(max_examples=25, deadline=None)
@given(drawn_models())
def test_any_mix_of_tables_and_id_forms_is_bit_equal(model: Drawn) -> None:
    rows = min(table.num_embeddings for table in model.tables)
    graph = graph_of(model, *Drawn.batch(3, rows))
    before = calls(graph, aten.embedding.default)
    changed = stack_lookups(graph)
    sweep(graph)
    assert (calls(graph, aten.embedding.default) < before) == bool(changed)
    if "moved" in graph.meta:
        assert_moved(graph, model)
    for size in SIZES:
        batch = Drawn.batch(size, rows)
        assert torch.equal(graph(*batch)[0], model(*batch))
    assert stack_lookups(graph) == []
