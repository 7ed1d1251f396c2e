"""Descriptions of models: plain data that hypothesis draws and makes smaller, and that prints as the code that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import hypothesis.strategies as st

__all__ = [
    "BLOCKS", "Attention", "Block", "Cross", "Deep", "Description", "Dots", "Excited", "Experts", "Field", "FieldWeighted", "Gate",
    "Pairs", "Stack", "Towers", "Unit", "Wide", "descriptions",
]  # fmt: skip

FORMS = ("arguments", "dict", "matrices", "floats")
"""One argument for each field; one dict; a matrix of ids, one of numbers, and histories; one matrix of floats."""


@dataclass(frozen=True)
class Field:
    """A feature: an id with a table of `size` rows, `size` numbers, or a padded history of `size` steps.

    `width` is that of its vectors, 0 that of the model. `shared` fields read the model's shared table. `pool` says
    how a history becomes one vector (ids are read by bags of one where it is "bag" or "flat"), `left` on which side it is padded.
    """

    kind: str = "id"
    request: bool = False
    size: int = 5
    width: int = 0
    shared: bool = False
    pool: str = "mean"
    left: bool = False


@dataclass(frozen=True)
class Stack:
    """Linear layers of these widths; activation and norm after each but the last, `first` a norm before them."""

    widths: tuple[int, ...] = (3,)
    act: str = "relu"
    norm: str = ""
    first: str = ""
    residual: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Block:
    """What all blocks have: `of` picks fields (none: all), `then` are layers after, `beside` gives them the fields too."""

    of: tuple[int, ...] = ()
    then: Stack | None = None
    beside: bool = False


@dataclass(frozen=True)
class Deep(Block):
    """Fields side by side."""


@dataclass(frozen=True)
class Wide(Block):
    """A weight for each id, added."""

    form: str = "add"


@dataclass(frozen=True)
class Towers(Block):
    """Layers over two sets of fields (by colour, or those at even places and the rest), compared."""

    layers: Stack = Stack()
    form: str = "dot"
    by_colour: bool = True


@dataclass(frozen=True)
class Gate(Block):
    """One set of fields scales another."""

    width: int = 3
    form: str = "sigmoid"
    by_colour: bool = True


@dataclass(frozen=True)
class Pairs(Block):
    """A factorisation machine: all pairs' products, added up over the width if `total`."""

    form: str = "square"
    total: bool = True


@dataclass(frozen=True)
class FieldWeighted(Block):
    """Dot products of pairs of fields, each times a learned weight."""

    form: str = "loop"


@dataclass(frozen=True)
class Dots(Block):
    """Dot products of pairs of fields side by side."""

    form: str = "tril"
    numbers: bool = False


@dataclass(frozen=True)
class Cross(Block):
    """Cross layers: of a full matrix (`rank` 0), of two thin ones, or of a vector (`rank` -1)."""

    layers: int = 1
    rank: int = 0
    form: str = "after"


@dataclass(frozen=True)
class Excited(Block):
    """Squeeze and excitation of fields."""

    squeeze: str = "mean"
    form: str = "scale"


@dataclass(frozen=True)
class Experts(Block):
    """A mixture of experts, gated."""

    experts: int = 2
    layers: Stack = Stack()


@dataclass(frozen=True)
class Unit(Block):
    """An activation unit: layers over (q, k, q-k, k-q, q*k), or those of `parts` in their order, weigh a history."""

    query: int = 0
    history: int = 0
    parts: tuple[str, ...] = ("q", "k", "q-k", "q*k")
    layers: Stack = Stack()
    mask: str = "zero"
    spread: str = "expand"
    with_query: bool = False


@dataclass(frozen=True)
class Attention(Block):
    """Attention of one field to a history, or of fields to each other (`among`)."""

    query: int = 0
    history: int = 0
    form: str = "explicit"
    heads: int = 1
    among: bool = False
    masked: bool = True
    with_query: bool = False


@dataclass(frozen=True)
class Description:
    """A model: its fields in the batch's order, how the batch holds and the model cuts them, its blocks, its answer.

    `once`: request features come with one row, and the model itself spreads them.
    """

    fields: tuple[Field, ...]
    blocks: tuple[Block, ...]
    width: int = 4
    form: str = "arguments"
    cut: str = "select"
    packed: bool = False
    once: bool = False
    answer: str = "sum"
    squash: bool = False


STACKS = st.builds(
    Stack,
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple),
    act=st.sampled_from(("relu", "prelu", "dice", "sigmoid", "tanh", "gelu", "leaky")),
    norm=st.sampled_from(("", "batch", "layer")),
    first=st.sampled_from(("", "", "batch", "layer")),
    residual=st.booleans(),
    dropout=st.booleans(),
)

FIELDS = st.builds(
    Field,
    kind=st.sampled_from(("id", "id", "id", "dense", "history")),
    request=st.booleans(),
    size=st.integers(1, 9),
    width=st.sampled_from((0, 0, 0, 1, 3)),
    shared=st.booleans(),
    pool=st.sampled_from(("mean", "sum", "max", "masked", "bag", "flat")),
    left=st.booleans(),
)

_COMMON: dict[str, Any] = {
    "of": st.lists(st.integers(0, 11), max_size=6).map(tuple),
    "then": st.none() | STACKS,
    "beside": st.booleans(),
}
_PARTS = tuple(
    order
    for n in range(1, 6)
    for order in permutations(("q", "k", "q-k", "k-q", "q*k"), n)
    if {*order} != {"k"}
)
_PLACE = st.integers(0, 11)


def _of(kind: type[Block], **settings: st.SearchStrategy[Any]) -> st.SearchStrategy[Block]:
    return st.builds(kind, **_COMMON, **settings)


BLOCKS: dict[type[Block], st.SearchStrategy[Block]] = {
    Deep: _of(Deep),
    Wide: _of(Wide, form=st.sampled_from(("add", "cat", "stack", "bag"))),
    Towers: _of(
        Towers,
        layers=STACKS,
        form=st.sampled_from(("dot", "cosine", "normalised", "bmm", "einsum", "both")),
        by_colour=st.booleans(),
    ),
    Gate: _of(
        Gate,
        width=st.integers(1, 5),
        form=st.sampled_from(("sigmoid", "product", "tanh", "mix")),
        by_colour=st.booleans(),
    ),
    Experts: _of(Experts, experts=st.integers(1, 3), layers=STACKS),
    Cross: _of(
        Cross,
        layers=st.integers(1, 3),
        rank=st.integers(-1, 2),
        form=st.sampled_from(("after", "before", "addcmul")),
    ),
    Pairs: _of(
        Pairs, form=st.sampled_from(("square", "pow", "loop", "stack", "gram", "index")), total=st.booleans()
    ),
    FieldWeighted: _of(FieldWeighted, form=st.sampled_from(("loop", "gram", "index", "einsum"))),
    Dots: _of(
        Dots,
        form=st.sampled_from(("tril", "triu", "buffer", "flat", "lists", "loop", "all")),
        numbers=st.booleans(),
    ),
    Excited: _of(
        Excited, squeeze=st.sampled_from(("mean", "max")), form=st.sampled_from(("scale", "residual"))
    ),
    Unit: _of(
        Unit,
        query=_PLACE,
        history=_PLACE,
        parts=st.sampled_from(_PARTS),
        layers=STACKS,
        mask=st.sampled_from(("zero", "product", "inf", "large", "none")),
        spread=st.sampled_from(("expand", "repeat", "like", "interleave")),
        with_query=st.booleans(),
    ),
    Attention: _of(
        Attention,
        query=_PLACE,
        history=_PLACE,
        form=st.sampled_from(("module", "explicit", "fused", "einsum")),
        heads=st.integers(1, 2),
        among=st.booleans(),
        masked=st.booleans(),
        with_query=st.booleans(),
    ),
}


@st.composite
def descriptions(draw: st.DrawFn, first: Sequence[type[Block]] = tuple(BLOCKS)) -> Description:
    """Models with at least one candidate feature, their first block one of `first`, and the fields their blocks need."""
    block = draw(st.sampled_from(tuple(first)).flatmap(BLOCKS.__getitem__))
    blocks = [block, *draw(st.lists(st.one_of(*BLOCKS.values()), max_size=1))]
    fields = draw(st.lists(FIELDS, min_size=1, max_size=12))
    if all(field.request for field in fields):
        fields.append(Field())
    needs = [need for block in blocks for need in _needs(block)]
    if "vectors" in needs:
        vectors = sum(field.kind == "id" and (field.shared or not field.width) for field in fields)
        fields += [Field(request=bool(vectors)) for _ in range(2 - vectors)]
    if "id" in needs and all(field.kind != "id" for field in fields):
        fields.append(Field())
    if "history" in needs and all(field.kind != "history" for field in fields):
        fields.append(Field("history", request=True))
    return Description(
        fields=tuple(fields),
        blocks=tuple(blocks),
        width=draw(st.sampled_from((4, 1, 2, 6, 8))),
        form=draw(st.sampled_from(FORMS)),
        cut=draw(st.sampled_from(("select", "slice", "split"))),
        packed=draw(st.booleans()),
        once=draw(st.sampled_from((False, False, False, True))),
        answer=draw(st.sampled_from(("sum", "cat", "tuple", "dict"))),
        squash=draw(st.booleans()),
    )


def _needs(block: Block) -> tuple[str, ...]:
    """What fields a block cannot do without: two vectors of the model's width, an id, a history."""
    if isinstance(block, Unit) or (isinstance(block, Attention) and not block.among):
        return ("vectors", "history")
    if isinstance(block, (Pairs, FieldWeighted, Dots, Excited, Attention)):
        return ("vectors",)
    return ("id",) if isinstance(block, Wide) else ()
