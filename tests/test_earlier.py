"""What was made of an earlier checkpoint is taken over exactly where it would come out the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.artifact.graphs import graph_data, graph_of, with_plain_names
from fastrec.artifact.tensors import Tensors
from fastrec.capture import capture
from fastrec.declared import read_program
from fastrec.earlier import Earlier, Origin, Region, digest_of, origins_of, side_by_side
from fastrec.errors import UnsafeArtifactError
from fastrec.graph import sweep
from fastrec.program import Program
from fastrec.request import ask
from fastrec.techniques import Fuse, QuantizeTables
from fastrec.techniques.quantization.row_codes import int4_rows, int8_rows


def tables(rng: torch.Generator, sizes: dict[str, int], width: int = 4) -> dict[str, Tensor]:
    return {name: torch.randn(rows, width, generator=rng) for name, rows in sizes.items()}


def stacked(held: dict[str, Tensor], order: list[str]) -> tuple[Tensor, Origin]:
    """The tables below each other, in this order, and where their rows come from."""
    parts, row = [], 0
    for name in order:
        rows, columns = held[name].shape
        parts.append((Origin((Region(0, rows, 0, columns, name),)), row, 0))
        row += rows
    origin = side_by_side(parts)
    assert origin is not None
    return torch.cat([held[name] for name in order]), Origin(origin.regions, "int8 of 4 columns")


def counted(code: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    seen: list[int] = []

    def coded(table: Tensor) -> Tensor:
        seen.append(len(table))
        return code(table)

    return coded, seen


@pytest.mark.parametrize("code", [int8_rows, int4_rows, Tensor.half])
@pytest.mark.parametrize("seed", range(6))
def test_coded_rows_are_what_coding_all_of_them_gives(code: Callable[[Tensor], Tensor], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    sizes = {name: int(torch.randint(1, 60, (1,), generator=rng)) for name in "abcde"}
    before = tables(rng, sizes)
    now = {name: table.clone() for name, table in before.items()}
    for name in "bd":  # some rows of some tables are others
        now[name][torch.rand(len(now[name]), generator=rng) < 0.3] *= 1.5
    now["c"] = torch.cat([now["c"], torch.randn(7, 4, generator=rng)])  # ids were appended
    now["e"] = now["e"][: len(now["e"]) // 2 + 1]  # and others are gone
    now["a"][0, 0] = -0.0
    before["a"][0, 0] = 0.0
    old, known = stacked(before, [list("abcde")[k] for k in torch.randperm(5, generator=rng)])
    new, origin = stacked(now, [list("abcde")[k] for k in torch.randperm(5, generator=rng)])
    earlier, (coded, seen) = Earlier(before, now, [(known, code(old))]), counted(code)
    got = earlier.coded_rows(new, origin, coded)
    assert torch.equal(got, code(new)) and got.dtype is code(new).dtype
    same = sum(
        int((before[name][:rows].view(torch.int32) == now[name][:rows].view(torch.int32)).all(1).sum())
        for name, rows in ((name, min(len(before[name]), len(now[name]))) for name in before)
    )
    assert sum(seen) == len(new) - same and earlier.coded[origin] == (same, len(new))


@pytest.mark.parametrize(
    "other",
    [
        lambda o: Origin(o.regions, "int8 of 5 columns"),
        lambda o: Origin(
            tuple(Region(p.row, p.rows, p.column, p.columns, p.path, "folded x") for p in o.regions), o.form
        ),
        lambda o: Origin(tuple(Region(p.row, p.rows, 1, p.columns, p.path) for p in o.regions), o.form),
        lambda o: Origin(tuple(Region(p.row, p.rows, p.column, p.columns, "z") for p in o.regions), o.form),
    ],
    ids=["form", "how", "column", "path"],
)
def test_what_was_made_otherwise_is_not_taken_over(other: Callable[[Origin], Origin]) -> None:
    held = tables(torch.Generator().manual_seed(0), {"a": 20, "b": 30})
    table, origin = stacked(held, ["a", "b"])
    code, seen = counted(int8_rows)
    earlier = Earlier(held, held, [(other(origin), torch.zeros(50, 12, dtype=torch.uint8))])
    assert torch.equal(earlier.coded_rows(table, origin, code), int8_rows(table))
    assert seen == [50]


def test_rows_side_by_side_are_as_before_where_all_their_parts_are() -> None:
    rng = torch.Generator().manual_seed(0)
    wide, thin = torch.randn(9, 4, generator=rng), torch.randn(9, 1, generator=rng)
    origin = Origin((Region(0, 9, 0, 4, "wide"), Region(0, 9, 4, 1, "thin")), "int8")
    old = int8_rows(torch.cat([wide, thin], 1))
    now = {"wide": wide.clone(), "thin": thin.clone()}
    now["wide"][2] += 1
    now["thin"][5] += 1
    code, seen = counted(int8_rows)
    table = torch.cat([now["wide"], now["thin"]], 1)
    got = Earlier({"wide": wide, "thin": thin}, now, [(origin, old)]).coded_rows(table, origin, code)
    assert torch.equal(got, int8_rows(table)) and seen == [2]


@pytest.mark.parametrize(
    ("changed", "rows", "expected"),
    [
        ((), 10, [True, True, True]),
        ((5,), 10, [True, False, True]),
        ((), 12, [True, True, False]),
        ((), 13, [True, True, False, False]),
        ((), 8, [True, True]),
        ((), 7, [True, False]),
    ],
)
def test_folded_blocks_are_those_that_were_worked_out_together(
    changed: tuple[int, ...], rows: int, expected: list[bool]
) -> None:
    rng = torch.Generator().manual_seed(0)
    before, folded = torch.randn(10, 3, generator=rng), torch.randn(10, 2, generator=rng)
    now = torch.cat([before, torch.randn(5, 3, generator=rng)])[:rows].clone()
    for row in changed:
        now[row] += 1
    place = Origin((Region(4, 10, 0, 2, "t", "folded w"),))
    earlier = Earlier({"t": before}, {"t": now}, [(place, torch.cat([torch.zeros(4, 2), folded]))])
    into = torch.full((rows, 2), torch.nan)
    region = Region(0, rows, 0, 2, "t", "folded w")
    assert earlier.folded_blocks(region, 4, into) == expected
    for block, filled in enumerate(expected):
        part = slice(4 * block, 4 * block + 4)
        assert torch.equal(into[part], folded[part]) if filled else bool(into[part].isnan().all())
    assert earlier.folded[region][1] == rows
    assert earlier.folded_blocks(Region(0, rows, 0, 2, "t", "folded v"), 4, into) == [False] * len(expected)


def test_what_is_closed_holds_nothing() -> None:
    held = tables(torch.Generator().manual_seed(0), {"a": 20})
    earlier = Earlier(held, held, [])
    graph = fx.GraphModule({}, fx.Graph())
    earlier.attach(graph)
    assert copy.deepcopy(earlier) is earlier
    earlier.close()
    assert earlier.same("a").numel() == 0


def test_a_digest_tells_shapes_and_dtypes_apart() -> None:
    x = torch.zeros(4)
    assert (
        len(
            {
                digest_of(x),
                digest_of(x[:2], x[2:]),
                digest_of(x.view(2, 2)),
                digest_of(x.int()),
                digest_of(x, None),
            }
        )
        == 5
    )


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(30 + place, 8) for place in range(6))
        self.weights = nn.ModuleList(nn.Embedding(30 + place, 1) for place in range(6))
        self.head = nn.Linear(48, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.cat([table(ids[:, place]) for place, table in enumerate(self.tables)], 1)
        first = torch.cat([one(ids[:, place]) for place, one in enumerate(self.weights)], 1).sum(
            1, keepdim=True
        )
        return torch.sigmoid(self.head(rows) + first).squeeze(1)


def fused(columns: list[int]) -> tuple[Program, Program]:
    """The ranker as it was captured, and after fusion, these columns of its ids being the request's."""
    torch.manual_seed(0)
    program = read_program(
        Ranker().eval(), torch.randint(30, (8, 6)), [], {"ids": columns} if columns else ()
    )
    plain = capture(program)
    asked = ask(plain)
    return plain, asked.with_model(Fuse(without=("fold_lookups",)).apply(asked).model)


@pytest.mark.parametrize("columns", [[], [0, 1]], ids=["rows", "request"])
def test_made_tables_say_where_every_entry_comes_from(columns: list[int]) -> None:
    plain, asked = fused(columns)
    assert isinstance(asked.model, fx.GraphModule)
    origins = origins_of(asked.model)
    assert "stacked_table" in origins
    model = dict(plain.model.named_parameters())
    for name, origin in origins.items():
        table = torch.zeros_like(asked.model.get_buffer(name))
        for p in origin.regions:
            assert not p.how
            table[p.row : p.row + p.rows, p.column : p.column + p.columns] = model[p.path].detach()
        assert torch.equal(table, asked.model.get_buffer(name)) and bool(table.count_nonzero())
    coded = QuantizeTables(least_bytes=0).apply(asked).model
    assert isinstance(coded, fx.GraphModule)
    assert {one.regions for one in origins_of(coded).values()} >= {origins["stacked_table"].regions}
    assert all(one.form.startswith("int8 of") for one in origins_of(coded).values())


def test_origins_travel_with_their_graph_and_go_with_their_constants() -> None:
    _, asked = fused([])
    assert isinstance(asked.model, fx.GraphModule)
    named = with_plain_names(asked.model)
    held = Tensors()
    for name, tensor in named.named_buffers():
        held.add(name, tensor)
    for name, tensor in named.named_parameters():
        held.add(name, tensor)
    held.settle()
    data = graph_data(named, held)
    assert set(origins_of(named).values()) == set(origins_of(asked.model).values())

    class Zeros:
        def tensor(self, place: dict, where: str) -> Tensor:
            return torch.zeros(place["shape"], dtype=getattr(torch, place["dtype"]))

    again = graph_of(copy.deepcopy(data), Zeros(), "here")  # type: ignore[arg-type]
    assert origins_of(again) == origins_of(named) != {}
    (one,) = [name for name, place in data["constants"].items() if "origin" in place][:1]
    for bad in (None, {"form": 1, "pieces": []}, {"form": "", "pieces": [[0, 1, 0, 1, "a"]]}, {"form": "", "pieces": [[0, -1, 0, 1, "a", ""]]}, {"form": "", "pieces": [], "more": 1}):  # fmt: skip
        spoilt = copy.deepcopy(data)
        spoilt["constants"][one]["origin"] = bad
        with pytest.raises(UnsafeArtifactError):
            graph_of(spoilt, Zeros(), "here")  # type: ignore[arg-type]
    for node in list(asked.model.graph.nodes):
        if node.op == "output":
            node.args = (tuple(x for x in asked.model.graph.nodes if x.op == "placeholder"),)
    sweep(asked.model)
    assert origins_of(asked.model) == {}
