"""What a caller declares of the request: names and columns as features, an example that may hold one row of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from .errors import InputError
from .inputs import Feature, read_layout
from .program import Program, target_of
from .request import Once

__all__ = ["Declared", "named", "read_program", "read_request", "request_notes", "unread_notes"]

Declared: TypeAlias = Sequence[str] | Mapping[str, bool | Iterable[int]]
"""Names of request features, or a mapping `name -> True | columns`."""


def read_request(features: Sequence[Feature], declared: Declared) -> tuple[Feature, ...]:
    """The features with `request` set as declared.

    A name is a feature's own, that of an argument or container (all that is in it), or the last part of one
    feature's name. Raises `InputError` for a name that is none, or columns the feature does not have.
    """
    if isinstance(declared, str) or not isinstance(declared, (Sequence, Mapping)):
        raise InputError(
            f"request_features takes a sequence of names or a mapping name -> True | columns, got {declared!r:.80}"
        )
    wanted = _wanted(declared)
    made = list(features)
    for name, columns in wanted.items():
        places = _places(features, name)
        for place in places:
            mine = _columns(made[place], columns)
            # A single number has no rows that could differ: it is the same in all of them anyway.
            made[place] = replace(made[place], request=mine if made[place].shape else False)
    return tuple(made)


def read_program(target: Any, batch: Any, calibration: Iterable[Any], declared: Declared) -> Program:
    """The program of a model and an example batch, with the declared features of the request.

    The example may hold one row of them: it is repeated for each candidate where the model takes it so. Raises
    `InputError` for a declaration or a batch that does not fit. What the model does not read of the batch may be declared.
    """
    calibration = tuple(calibration)
    if not declared:
        return Program.read(target, batch, calibration)
    model, entry = target_of(target)
    layout, tensors = read_layout(getattr(model, entry), batch)
    features = read_request(layout.features, declared)
    mine = [
        f.request is True and t.dim() > 0 and t.shape[0] == 1 for f, t in zip(features, tensors, strict=True)
    ]
    counts = [t.shape[0] for t, once in zip(tensors, mine, strict=True) if t.dim() > 0 and not once]
    program: Program | None = None
    if any(mine) and counts and (rows := max(set(counts), key=counts.count)) > 1:
        pairs = zip(tensors, mine, strict=True)
        repeated = [t.expand(rows, *t.shape[1:]).contiguous() if once else t for t, once in pairs]
        args, kwargs = layout.arguments(repeated)
        try:
            program = Program.read(target, kwargs or args, calibration)
        except InputError:
            program = None  # then it is its own form that has one row
    program = program or Program.read(target, batch, calibration)
    left = {feature.name for feature in program.layout.features}
    wanted = {
        name: columns
        for name, columns in _wanted(declared).items()
        if any(layout.features[place].name in left for place in _places(layout.features, name))
    }
    features = read_request(program.layout.features, wanted)
    _refuse_unspread(features, program.layout.rows)
    return replace(program, layout=replace(program.layout, features=features))


def _refuse_unspread(features: Sequence[Feature], rows: int | None) -> None:
    """Raises `InputError` for a declared feature of N rows that the model does not read row by row."""
    for feature in features:
        looks = rows is None or (rows > 1 and rows in feature.shape[:1])
        if feature.request and feature.role == "fixed" and looks and feature.shape[:1] != (1,):
            raise InputError(
                f"request_features: {feature.name!r} is {feature.shape} in the example, and no dimension of it was found "
                "to count candidates: answers do not follow its rows. Leave it out of request_features.",
                feature=feature.name,
            )


def unread_notes(program: Program) -> list[str]:
    """What of the example the model does not read, in words for the report."""
    layout, _ = read_layout(getattr(program.model, program.entry), program.batch)
    read = {feature.name for feature in program.layout.features}
    left = [repr(feature.name) for feature in layout.features if feature.name not in read]
    return [f"not read by the model, and so not asked of batches: {', '.join(left)}"] if left else []


def request_notes(program: Program) -> list[str]:
    """What was taken as the request's, in words for the report."""
    taken = [f for f in program.layout.features if f.request]
    whole = [named(f.name, f.request) for f in taken if f.role in ("rows", "fixed")]
    jagged = [repr(f.name) for f in taken if f.role not in ("rows", "fixed")]
    notes = [f"taken as the request's: {', '.join(whole)}"] if whole else []
    if jagged:
        notes.append(
            f"declared of the request but cut by offsets or lengths, and so computed per row: {', '.join(jagged)}"
        )
    differing = Once(program.layout.features).differing(program.flat(program.batch))
    if differing:
        notes.append(
            f"rows of the example differ in {', '.join(map(repr, differing))}: they are taken as requests of their own"
        )
    return notes


def named(name: str, declared: bool | tuple[int, ...]) -> str:
    """A declared feature in words."""
    return f"{name!r} columns {', '.join(map(str, declared))}" if isinstance(declared, tuple) else repr(name)


def _wanted(declared: Declared) -> dict[str, bool | Iterable[int]]:
    return dict(declared) if isinstance(declared, Mapping) else dict.fromkeys(declared, True)


def _places(features: Sequence[Feature], name: object) -> list[int]:
    names = [feature.name for feature in features]
    if isinstance(name, str):
        if name in names:
            return [names.index(name)]
        inside = [i for i, full in enumerate(names) if full.startswith((f"{name}.", f"{name}["))]
        if inside:
            return inside
        inside = [i for i, full in enumerate(names) if f".{name}." in full or f".{name}[" in full]
        if inside:
            return inside
        ends = [i for i, full in enumerate(names) if full.endswith(f".{name}")]
        if len(ends) == 1:
            return ends
        if ends:
            raise InputError(
                f"request_features: {name!r} may be any of {', '.join(names[i] for i in ends)}. Give the full name.",
                feature=name,
            )
    raise InputError(
        f"request_features: no feature {name!r:.80}; the batch has {', '.join(names)}.", feature=str(name)
    )


def _columns(feature: Feature, columns: object) -> bool | tuple[int, ...]:
    if isinstance(columns, bool):
        return columns
    width = feature.shape[1] if len(feature.shape) == 2 and not feature.axis else 0
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise InputError(
            f"request_features: {feature.name!r} takes True or columns, got {columns!r:.80}",
            feature=feature.name,
        )
    given = list(columns)
    if not width:
        raise InputError(
            f"request_features: {feature.name!r} is {feature.shape}, and only a matrix (rows, columns) has columns. "
            "Declare all of it with True.",
            feature=feature.name,
        )
    for column in given:
        if isinstance(column, bool) or not isinstance(column, int) or not -width <= column < width:
            raise InputError(
                f"request_features: {feature.name!r} has columns 0 to {width - 1}, got {column!r:.80}",
                feature=feature.name,
            )
    chosen = tuple(sorted({column % width for column in given}))
    return True if len(chosen) == width else chosen or False
