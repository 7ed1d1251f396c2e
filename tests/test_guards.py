"""Guards: every id that no table has is refused by name and row, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrec import IdOutOfRangeError, InputError
from fastrec.capture import capture
from fastrec.guards import Guard, read_guard
from fastrec.program import Program

from .zoo import ZOO, Entry
from .zoo.programs import captured, program_of


def guard_of(model: nn.Module, batch: object, nonfinite: str = "raise") -> tuple[Guard, Program]:
    program = Program.read(model.eval(), batch)
    return read_guard(capture(program), nonfinite), program  # type: ignore[arg-type]


class Packed(nn.Module):
    """Two ids and a number in one float matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(10, 2), nn.Embedding(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x[:, 0].long()) + self.b(x[:, 2].long()) + x[:, 1:2]


class Offsets(nn.Module):
    """One table, ids shifted by the field's start."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 2)
        self.register_buffer("start", torch.tensor([0, 10, 25]))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids + self.start).sum(1)


class Hashed(nn.Module):
    """Ids made safe by a remainder, which therefore need no check; and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.safe, self.table = nn.Embedding(10, 2), nn.Embedding(10, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.safe(ids % 10) + self.table(ids // 3)


def test_columns_of_a_packed_matrix() -> None:
    guard, _ = guard_of(Packed(), torch.tensor([[1.0, 0.5, 3.0], [2.0, -1.0, 19.0]]))
    guard([torch.tensor([[9.0, 1e9, 19.0]])])
    with pytest.raises(
        IdOutOfRangeError, match=r"'x', row 1, position 0: got id 10.0, expected 0 <= id < 10"
    ):
        guard([torch.tensor([[9.0, 0.0, 19.0], [10.0, 0.0, 1.0]])])
    with pytest.raises(IdOutOfRangeError, match="position 2"):
        guard([torch.tensor([[9.0, 0.0, -1.0]])])
    with pytest.raises(InputError, match="row 0"):
        guard([torch.tensor([[9.0, float("nan"), 1.0]])])
    with pytest.raises(IdOutOfRangeError):
        guard([torch.tensor([[float("nan"), 0.0, 1.0]])])


def test_shifted_ids_are_held_to_the_table_as_a_whole() -> None:
    guard, _ = guard_of(Offsets(), torch.tensor([[1, 2, 3], [4, 5, 4]]))
    guard([torch.tensor([[29, 19, 4]])])
    with pytest.raises(IdOutOfRangeError, match="position 2: got id 5, expected -25 <= id < 5"):
        guard([torch.tensor([[0, 0, 5]])])


def test_computed_ids() -> None:
    guard, _ = guard_of(Hashed(), torch.tensor([3, 29]))
    guard([torch.tensor([0, 29])])
    with pytest.raises(IdOutOfRangeError, match="row 1"):
        guard([torch.tensor([0, 30])])
    with pytest.raises(IdOutOfRangeError):
        guard([torch.tensor([-1])])


class Place(nn.Module):
    """One vector of a history, where its length says, found in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.table, self.way = nn.Embedding(30, 4), way

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        rows, last = self.table(history), length - 1
        if self.way == "gather":
            return rows.gather(1, last.view(-1, 1, 1).expand(-1, -1, 4)).squeeze(1)
        if self.way == "index":
            return rows[torch.arange(len(rows)), last]
        return (
            rows.gather(1, rows.sum(2).argmax(1).view(-1, 1, 1).expand(-1, -1, 4)).squeeze(1)
            + length[:, None]
        )


@pytest.mark.parametrize(("way", "least"), [("gather", 1), ("index", -4)])
def test_places_of_what_is_computed(way: str, least: int) -> None:
    batch = torch.randint(30, (3, 5)), torch.tensor([1, 3, 5])
    model = Place(way)
    guard, program = guard_of(model, batch)
    for length in (least, 5):
        good = batch[0], torch.tensor([1, length, 5])
        guard(program.flat(good))
        model(*good)
    for length in (least - 1, 6, 10**6):
        wrong = batch[0], torch.tensor([1, length, 5])
        with pytest.raises((IndexError, RuntimeError)):
            model(*wrong)
        with pytest.raises(
            IdOutOfRangeError, match=f"'length', row 1: got id {length}, expected {least} <= id < 6"
        ):
            guard(program.flat(wrong))


class Written(nn.Module):
    """Ids of items as places at which something is written, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.head = way, nn.Linear(30, 1)

    def forward(self, items: Tensor) -> Tensor:
        none, one = torch.zeros(len(items), 30), torch.ones(len(items), 1)
        if self.way == "one_hot":
            held = nn.functional.one_hot(items, 30).float()
        elif self.way == "halves":
            held = nn.functional.one_hot(items // 2, 30).float()
        elif self.way == "scatter":
            held = none.scatter(1, items[:, None], one)
        elif self.way == "value":
            held = none.scatter(1, items[:, None], 1.0)
        elif self.way == "scatter_add":
            held = none.scatter_add(1, items[:, None], one)
        elif self.way == "scatter_reduce":
            held = none.scatter_reduce(1, items[:, None], one, "amax")
        else:
            held = none.index_put((torch.arange(len(items)), items), torch.tensor(1.0))
        return torch.sigmoid(self.head(held))


@pytest.mark.parametrize(
    ("way", "least", "end"),
    [
        ("one_hot", 0, 30), ("halves", 0, 60), ("scatter", 0, 30), ("value", 0, 30), ("scatter_add", 0, 30), ("scatter_reduce", 0, 30),
        ("index_put", -30, 30),
    ],
)  # fmt: skip
def test_places_that_are_written(way: str, least: int, end: int) -> None:
    model = Written(way)
    guard, _ = guard_of(model, torch.randint(30, (3,)))
    for good in (least, end - 1):
        guard([torch.tensor([1, good])])
        model(torch.tensor([1, good]))
    for wrong in (least - 1, end):
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.tensor([1, wrong]))
        with pytest.raises(IdOutOfRangeError, match=r"row 1.*'items'|'items', row 1"):
            guard([torch.tensor([1, wrong])])


def test_places_that_the_model_finds_itself_are_not_checked() -> None:
    guard, program = guard_of(Place("itself"), (torch.randint(30, (3, 5)), torch.tensor([1, 3, 5])))
    assert guard.computed is None
    guard(program.flat((torch.randint(30, (3, 5)), torch.tensor([-1, 30, 500]))))


def test_float_ids_too_large_to_be_told_apart() -> None:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(1, 2).expand(2**25, 2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.embedding(x.long(), self.table)

    guard, _ = guard_of(Big(), torch.tensor([1.0, 2.0]))
    guard([torch.tensor([2.0**24 - 1])])
    with pytest.raises(IdOutOfRangeError, match="give ids as int64"):
        guard([torch.tensor([2.0**24])])


def test_non_finite_numbers() -> None:
    tower = nn.Linear(3, 1)
    clean, odd = torch.randn(2, 3), torch.tensor([[1.0, float("inf"), 2.0]])
    guard_of(tower, clean, "propagate")[0]([odd])
    guard_of(tower, odd)[0]([odd])  # the example has them, so they are meant
    guard, _ = guard_of(tower, clean)
    guard([torch.full((2, 3), 3e38)])  # finite, though their sum is not
    with pytest.raises(InputError, match=r"'input', row 0, position 1: got inf"):
        guard([odd])


@pytest.mark.parametrize("entry", [e for e in ZOO if e.capturable], ids=lambda entry: entry.name)
def test_real_batches_pass_and_ids_out_of_range_do_not(entry: Entry) -> None:
    program = program_of(entry)
    guard = read_guard(captured(entry))
    for rows in (1, 3, 33):
        flat = program.flat(entry.batch(rows, torch.Generator().manual_seed(rows)))
        guard(flat)
        for index, bound in enumerate(guard.bounds):
            if bound is None or not flat[index].numel():
                continue
            for wrong in (-1, 10**6):
                bad = [tensor.clone() for tensor in flat]
                bad[index].view(-1)[0] = wrong
                position = (0,) * bad[index].dim()
                if torch.as_tensor(bound.high)[
                    tuple(min(p, s - 1) for p, s in zip(position, bound.high.shape, strict=True))
                ].isinf():
                    continue
                with pytest.raises(IdOutOfRangeError) as caught:
                    guard(bad)
                assert caught.value.feature == program.layout.features[index].name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 13), min_size=5, max_size=5), min_size=1, max_size=40))
def test_agrees_with_the_definition(rows: list[list[int]]) -> None:
    ids = torch.tensor(rows)
    guard = _GUARDS.setdefault("columns", guard_of(_Columns(), torch.zeros(3, 5, dtype=torch.int64))[0])
    fits = bool(((ids >= 0) & (ids < torch.tensor([4, 5, 6, 7, 8]))).all())
    if fits:
        guard([ids])
    else:
        with pytest.raises(IdOutOfRangeError):
            guard([ids])


_GUARDS: dict[str, Guard] = {}


class _Columns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 2) for size in (4, 5, 6, 7, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)


def test_many_vectors_are_checked_as_one() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5 + i, 2) for i in range(6))

        def forward(self, *columns: Tensor) -> Tensor:
            return torch.cat([table(x) for table, x in zip(self.tables, columns, strict=True)], 1)

    guard, _ = guard_of(Vectors(), tuple(torch.zeros(4, dtype=torch.int64) for _ in range(6)))
    guard([torch.full((3,), 4 + i) for i in range(6)])
    for index in range(6):
        bad = [torch.zeros(3, dtype=torch.int64) for _ in range(6)]
        bad[index][2] = 5 + index
        with pytest.raises(IdOutOfRangeError, match=rf"args\[{index}\]', row 2: got id {5 + index}"):
            guard(bad)
