"""`python -m benchmarks.updating`: what an update of an artifact takes, beside compressing the new checkpoint anew and a search.

Writes `benchmarks/results/updating/<machine>.json` and the table in `docs/updating.md`.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastrec
from fastrec.compressed import CompressedModel
from fastrec.measure import Machine, evaluator, machine
from fastrec.plain import from_plain, loads
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables, Technique
from fastrec.wording import amount, duration

from .marks import put
from .pages import ROOT, run

PAGE = ROOT / "docs" / "updating.md"
SCHEMA = 1
SIZES = (1, 100, 1000)
BUDGET = fastrec.Budget({"auc": 1e-3})
SEARCHING = 600.0
ENLARGED = 16
RECIPES: Mapping[str, tuple[Technique, ...]] = {
    "exact": (Fuse(),),
    "int8": (Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()),
}
Parts = Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Row:
    """One change of one model: seconds of the update and of compressing anew, each with the writing, and what was taken over."""

    data: str
    recipe: str
    serves: str
    change: str
    update: float
    anew: float
    rows: int
    rows_reused: int
    folded: int
    folded_reused: int


@dataclass(frozen=True)
class Updating:
    """Every row, what a search of each model takes, the bytes of its tensors, and the machine."""

    machine: Machine
    searched: Mapping[str, float]
    bytes: Mapping[str, int]
    rows: tuple[Row, ...]


def models() -> Iterator[tuple[str, nn.Module, Parts]]:
    """The trained model of an example, as it is and with longer tables, and the rows of every split, labels last."""
    sys.path.insert(0, str(ROOT / "examples"))
    import movietweetings

    model, parts = movietweetings.trained()
    yield "movietweetings", model, parts
    yield f"movietweetings, tables of {ENLARGED} times the rows", longer(model, ENLARGED), parts


def longer(model: nn.Module, times: float) -> nn.Module:
    """The model with more rows in each table of users and films, as trained as those that it has."""
    made = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(0)
    for tables in (made.tables, made.weights):  # type: ignore[union-attr]  # what the example's model has
        for place in (0, 1):
            old = tables[place].weight.detach()  # type: ignore[index, union-attr]
            more = round(len(old) * (times - 1))
            rows = old[torch.randint(len(old), (more,), generator=rng)]
            rows = rows + 0.01 * torch.randn(rows.shape, generator=rng)
            tables[place] = nn.Embedding.from_pretrained(torch.cat([old, rows]))  # type: ignore[index, operator]
    return made.eval()


def changes(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The checkpoints that may come next."""
    rng = torch.Generator().manual_seed(1)

    def other(parameter: Tensor, rows: Tensor | slice) -> None:
        parameter[rows] += 0.01 * parameter.std() * torch.randn(parameter[rows].shape, generator=rng)

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    with torch.no_grad():
        new = copy.deepcopy(model)
        for old, parameter in zip(model.parameters(), new.parameters(), strict=True):
            if id(old) in tables:
                chosen = torch.randperm(len(parameter) - 1, generator=rng)[: max(1, len(parameter) // 100)]
                other(parameter, chosen + 1)
        yield "1 % of the rows", new
        new = copy.deepcopy(model)
        for old, parameter in zip(model.parameters(), new.parameters(), strict=True):
            if id(old) not in tables and parameter.numel() > 1:
                other(parameter, slice(None))
        yield "all dense weights", new
        yield "1 % more ids", longer(model, 1.01)


def measure(seconds: float, only: Sequence[str]) -> Updating:
    """An update and a fresh compression for each change, and a search of each model."""
    rows: list[Row] = []
    searched, sizes = {}, {}
    for data, model, parts in models():
        sizes[data] = sum(tensor.nbytes for tensor in model.state_dict().values())
        for name, recipe in RECIPES.items():
            if not only or any(word in f"{data}, {name}" for word in only):
                rows += _rows(data, name, model, parts, recipe)
                print(*rows[-3:], sep="\n", flush=True)
        if not only:
            _, searched[data] = _compressed(model, parts, seconds=SEARCHING)
    return Updating(machine(), searched, sizes, tuple(rows))


def _rows(
    data: str, name: str, model: nn.Module, parts: Parts, recipe: tuple[Technique, ...]
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        first, _ = _compressed(model, parts, recipe=recipe)
        for change, new in changes(model):
            first.save(Path(folder) / "ranker")
            began = time.perf_counter()
            found = fastrec.update(
                Path(folder) / "ranker",
                new,
                evaluate=_evaluate(parts),
                calibration=_traffic(parts),
                progress=False,
            )
            took = time.perf_counter() - began
            _, anew = _compressed(new, parts, recipe=recipe, save=Path(folder) / "anew")
            told = found.report.updated
            assert told is not None
            serves = "exact" if found.exact else "approximates"
            yield Row(
                data,
                name,
                serves,
                change,
                took,
                anew,
                told.rows,
                told.rows_reused,
                told.folded,
                told.folded_reused,
            )


def _evaluate(parts: Parts) -> Any:
    *inputs, labels = parts["valid"]
    return evaluator(zip(*(x.split(1000) for x in inputs), strict=True), labels)


def _traffic(parts: Parts) -> list[tuple[Tensor, ...]]:
    *known, _ = parts["train"]
    chosen = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(0))[:8192].split(512)
    return [tuple(x[ids] for x in known) for ids in chosen]


def _compressed(
    model: nn.Module, parts: Parts, *, save: Path | None = None, **settings: Any
) -> tuple[CompressedModel, float]:
    """The model compressed, and saved where that is asked for, and the seconds of both."""
    *inputs, _ = parts["valid"]
    began = time.perf_counter()
    found = fastrec.compress(
        model, tuple(x[:256] for x in inputs), calibration=_traffic(parts), evaluate=_evaluate(parts),
        budget=BUDGET, batch_sizes=SIZES, progress=False, **settings,
    )  # fmt: skip
    if save is not None:
        found.save(save)
    return found, time.perf_counter() - began


def table(found: Updating) -> str:
    """The page's table."""
    lines = [f"{found.machine}", ""]
    for data, size in found.bytes.items():
        search = found.searched.get(data)
        said = "" if search is None else f" A search takes {duration(search)}."
        lines += [
            f"### {data}", "", f"{amount(size)} of tensors.{said}", "",
            "| recipe | what serves | what changed | update | compressed anew | rows taken over | folded tables taken over |",
            "|---|---|---|--:|--:|--:|--:|",
        ]  # fmt: skip
        for row in found.rows:
            if row.data == data:
                lines.append(
                    f"| {row.recipe} | {row.serves} | {row.change} | {duration(row.update)} | {duration(row.anew)} | "
                    f"{row.rows_reused:,} of {row.rows:,} | {row.folded_reused} of {row.folded} |"
                )
        lines.append("")
    return "\n".join(lines)


def with_table(page: str, found: Updating) -> str:
    """The page with this table between its marks."""
    return put(page, "updating", table(found))


def read(path: Path) -> Updating:
    """What was measured before."""
    return from_plain(Updating, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Updating) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "updating", SCHEMA, measure, show)
