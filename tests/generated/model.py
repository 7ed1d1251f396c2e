"""A model from its description, and batches of one request for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.base import Entry

from .blocks import Whole
from .core import Given, History, Plan
from .describe import Attention, Description, Field, Unit

__all__ = ["Generated", "entry_of", "request_of"]

TABLE = 7
"""Rows of the shared table."""


def width_of(field: Field, description: Description) -> int:
    """The width of a field's vectors; shared tables and histories have that of the model."""
    return description.width if field.shared or field.kind == "history" else field.width or description.width


def columns_of(field: Field) -> int:
    """How many columns of a packed matrix a field takes."""
    return 1 if field.kind == "id" else field.size


class Generated(nn.Module):
    """Cuts the batch into fields, looks them up, runs the blocks."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        fields = description.fields
        self.shared = nn.Embedding(TABLE, description.width, padding_idx=0)
        ids = [field for field in fields if field.kind == "id"]
        same = len({width_of(field, description) for field in ids}) == 1
        self.packed = (
            description.packed and description.form == "matrices" and same and not any(f.shared for f in ids)
        )
        if self.packed:
            sizes = torch.tensor([field.size for field in ids])
            self.table = nn.Embedding(int(sizes.sum()), width_of(ids[0], description))
            self.register_buffer("offsets", sizes.cumsum(0) - sizes)
        self.tables = nn.ModuleDict()
        for place, field in enumerate(fields):
            if field.kind == "dense" or field.shared or (field.kind == "id" and self.packed):
                continue
            padding = 0 if field.kind == "history" else None
            size = TABLE if field.kind == "history" else field.size
            self.tables[f"f{place}"] = nn.Embedding(size, width_of(field, description), padding_idx=padding)
        plan = plan_of(description)
        self.blocks: nn.ModuleList = nn.ModuleList(Whole(block, plan) for block in description.blocks)
        widths: list[int] = [block.width for block in self.blocks]
        if description.answer == "sum":
            self.heads = nn.ModuleList(nn.Linear(width, 1) for width in widths)
        elif description.answer == "cat":
            self.head = nn.Linear(sum(widths), 2)

    def forward(self, *batch: Any) -> Any:
        description = self.description
        given = self.read(self.cut(batch))
        answers = [block(given) for block in self.blocks]
        if description.answer == "sum":
            answer = sum(
                y if y.shape[1] == 1 else head(y) for head, y in zip(self.heads, answers, strict=True)
            )
            return self.squash(answer.squeeze(-1))
        if description.answer == "cat":
            return self.squash(self.head(torch.cat(answers, dim=-1)))
        answers = [self.squash(answer) for answer in answers]
        if description.answer == "dict":
            return {f"task{place}": answer for place, answer in enumerate(answers)}
        return tuple(answers)

    def squash(self, x: Tensor) -> Tensor:
        return x.sigmoid() if self.description.squash else x

    def cut(self, batch: tuple[Any, ...]) -> list[Tensor]:
        """The fields: ids (N,), numbers (N, size), histories (N, size)."""
        description = self.description
        fields = description.fields
        if description.form == "arguments":
            cut = list(batch)
        elif description.form == "dict":
            cut = [batch[0][f"f{place}"] for place in range(len(fields))]
        else:
            return self.uncolumned(batch)
        if description.once:
            rows = next(len(x) for x, field in zip(cut, fields, strict=True) if not field.request)
            cut = [self.spread(x, rows) if field.request else x for x, field in zip(cut, fields, strict=True)]
        return cut

    def spread(self, x: Tensor, rows: int) -> Tensor:
        if self.description.cut == "slice":
            return x.repeat(rows, *([1] * (x.dim() - 1)))
        return x.expand(rows, *x.shape[1:])

    def uncolumned(self, batch: tuple[Tensor, ...]) -> list[Tensor]:
        description = self.description
        left = dict(zip(matrices_of(description), batch, strict=True))
        parts: dict[int, Tensor] = {}
        for name, matrix in left.items():
            places = matrices_of(description)[name]
            widths = [columns_of(description.fields[place]) for place in places]
            if description.cut == "split":
                pieces = list(torch.split(matrix, widths, dim=1))
            else:
                starts = [sum(widths[:k]) for k in range(len(widths))]
                pieces = [matrix[:, a : a + w] for a, w in zip(starts, widths, strict=True)]
                if description.cut == "select":
                    pieces = [
                        matrix[:, a] if description.fields[p].kind == "id" else piece
                        for a, p, piece in zip(starts, places, pieces, strict=True)
                    ]
            parts.update(zip(places, pieces, strict=True))
        made = []
        for place, field in enumerate(description.fields):
            part = parts[place]
            if field.kind != "dense" and part.is_floating_point():
                part = part.long()
            made.append(part.squeeze(1) if field.kind == "id" and part.dim() == 2 else part)
        return made

    def read(self, cut: list[Tensor]) -> Given:
        description = self.description
        given = Given()
        packed: list[Tensor] = []
        if self.packed:
            ids = [x for x, field in zip(cut, description.fields, strict=True) if field.kind == "id"]
            packed = list((self.table(torch.stack(ids, 1) + self.offsets)).unbind(1))
        for place, (x, field) in enumerate(zip(cut, description.fields, strict=True)):
            if field.kind == "dense":
                given.numbers.append(x)
                given.parts.append(x)
                continue
            table = (
                self.shared
                if field.shared
                else None
                if packed and field.kind == "id"
                else self.tables[f"f{place}"]
            )
            if field.kind == "id":
                row = looked_up(field.pool, x, table) if table is not None else packed.pop(0)
                given.ids.append(x)
                given.parts.append(row)
                if width_of(field, description) == description.width:
                    given.vectors.append(row)
            else:
                assert table is not None
                history = History(table(x), x != 0)
                given.histories.append(history)
                given.parts.append(pooled(field.pool, history, x, table))
        return given


def looked_up(form: str, ids: Tensor, table: nn.Embedding) -> Tensor:
    """The vectors (N, d) of ids (N,): some authors write bags of one."""
    if form == "bag":
        return F.embedding_bag(ids, table.weight, torch.arange(ids.shape[0]), mode="sum")
    if form == "flat":
        return F.embedding_bag(ids.unsqueeze(1), table.weight, mode="mean")
    return table(ids)


def plan_of(description: Description) -> Plan:
    """The sizes of what blocks are given."""
    fields = description.fields
    ids = [field for field in fields if field.kind == "id"]
    flat = [field.size if field.kind == "history" and field.pool == "flat" else 1 for field in fields]
    return Plan(
        width=description.width,
        widths=tuple(
            field.size if field.kind == "dense" else width_of(field, description) * times
            for field, times in zip(fields, flat, strict=True)
        ),
        request=tuple(field.request for field in fields),
        tables=tuple(TABLE if field.shared else field.size for field in ids),
        vectors=sum(width_of(field, description) == description.width for field in ids),
        numbers=sum(field.size for field in fields if field.kind == "dense"),
        histories=sum(field.kind == "history" for field in fields),
    )


def pooled(form: str, history: History, ids: Tensor, table: nn.Embedding) -> Tensor:
    """A history (N, T, d) as one vector."""
    rows, mask = history.rows, history.mask
    if form == "mean":
        return rows.mean(1)
    if form == "sum":
        return rows.sum(dim=1)
    if form == "max":
        return rows.max(dim=1).values
    if form == "flat":
        return rows.flatten(1)
    if form == "bag":
        return F.embedding_bag(ids, table.weight, mode="sum", padding_idx=0)
    weights = mask.to(rows.dtype).unsqueeze(-1)
    return (rows * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def matrices_of(description: Description) -> dict[str, list[int]]:
    """The arguments of a packed batch, and the fields each holds."""
    fields = description.fields
    if description.form == "floats":
        return {"x": list(range(len(fields)))}
    made: dict[str, list[int]] = {
        "ids": [i for i, field in enumerate(fields) if field.kind == "id"],
        "dense": [i for i, field in enumerate(fields) if field.kind == "dense"],
    }
    made = {name: places for name, places in made.items() if places}
    return made | {f"h{i}": [i] for i, field in enumerate(fields) if field.kind == "history"}


def request_of(description: Description) -> dict[str, bool | list[int]]:
    """The request features, as `read_request` takes them."""
    fields = description.fields
    if description.form in ("arguments", "dict"):
        name = "args[{}]" if description.form == "arguments" else "f{}"
        name = "args[0].f{}" if description.form == "dict" else name
        return {name.format(place): True for place, field in enumerate(fields) if field.request}
    declared: dict[str, bool | list[int]] = {}
    for number, places in enumerate(matrices_of(description).values()):
        colours = [fields[place].request for place in places for _ in range(columns_of(fields[place]))]
        if any(colours):
            columns = [column for column, colour in enumerate(colours) if colour]
            declared[f"args[{number}]"] = True if all(colours) else columns
    return declared


def batch_of(description: Description, rows: int, rng: torch.Generator) -> Any:
    """A batch of one request: request features are the same in all rows."""
    # Attention with every key masked is not a number, in the original too.
    fewest = int(
        any(
            isinstance(block, Attention) or (isinstance(block, Unit) and block.mask in ("inf", "large"))
            for block in description.blocks
        )
    )
    drawn = []
    for field in description.fields:
        # Drawn whatever the number of rows, so that one request is asked at every size.
        x = _drawn(field, 1 if field.request else rows, fewest, rng)
        drawn.append(
            x.repeat(rows, *([1] * (x.dim() - 1)))
            if field.request and not (description.once and description.form in ("arguments", "dict"))
            else x
        )
    if description.form == "arguments":
        return tuple(drawn)
    if description.form == "dict":
        return ({f"f{place}": x for place, x in enumerate(drawn)},)
    made = []
    for places in matrices_of(description).values():
        columns = [drawn[place].reshape(rows, columns_of(description.fields[place])) for place in places]
        made.append(torch.cat([x.float() if description.form == "floats" else x for x in columns], 1))
    return tuple(made)


def _drawn(field: Field, rows: int, fewest: int, rng: torch.Generator) -> Tensor:
    if field.kind == "dense":
        return torch.randn(rows, field.size, generator=rng)
    if field.kind == "id":
        return torch.randint(TABLE if field.shared else field.size, (rows,), generator=rng)
    lengths = torch.randint(fewest, field.size + 1, (rows, 1), generator=rng)
    steps = torch.arange(field.size)
    there = steps >= field.size - lengths if field.left else steps < lengths
    return torch.randint(1, TABLE, (rows, field.size), generator=rng) * there


def entry_of(description: Description) -> Entry:
    """The model and its batches, as an entry of the zoo."""
    build: Callable[[], nn.Module] = lambda: Generated(description)  # noqa: E731
    return Entry("generated", build, lambda rows, rng: batch_of(description, rows, rng))
