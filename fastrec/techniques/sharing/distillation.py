"""Distillation without labels: codebooks are fitted to what the program answers.

    min over the codebooks:   sum over outputs y    mean (y' - y)^2 / var y        y' by the codes, y by the tables

over the calibration batches (the example, without any), by Adam, one batch a step in turn, at rates that fall from three
thousandths of a codebook's size to nothing. Codes, towers and all else are not touched, and rows of zeros stay zero. Of
four batches and more, one in four takes no part, and judges: where its answers have not come nearer, the codebooks stay
as they were. Cost: a run of a batch forward and back for each step.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...graph import is_written
from ...program import Program
from ..traffic import batches_of

__all__ = ["Distilled", "distilled"]

_RATE = 0.003
_JUDGES = 4
_LOOKS = 8


@dataclass(frozen=True)
class Distilled:
    """How far answers are off where they are judged, root mean square, relative to their spread."""

    before: float
    after: float

    def __str__(self) -> str:
        return f"answers {self.before:.2%} of their spread off, distilled {self.after:.2%}"


def distilled(program: Program, gm: fx.GraphModule, steps: int) -> Distilled | str:
    """Fits the codebooks of `gm` that the program's own graph has not, in its buffers. What came of it, or why nothing did."""
    assert isinstance(program.model, fx.GraphModule)
    old = program.model.meta.get("codebooks", ())
    held = {name: gm.get_buffer(name) for name in gm.meta["codebooks"] if name not in old}
    if any(is_written(node) for node in gm.graph.nodes):
        return "the graph writes in place"
    if _passes_codes(gm, held):
        return "the answers give the codebooks no gradient: layers behind them are in fewer bits"
    batches = batches_of(program)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        right = [_numbers(program.model(*batch)) for batch in batches]
    if not any(one.numel() for answers in right for one in answers):
        return "the calibration gives no answers"
    judges = list(range(_JUDGES - 1, len(batches), _JUDGES)) or list(range(len(batches)))
    taught = [k for k in range(len(batches)) if k not in judges] or judges
    sizes = [max(float(torch.cat(parts).double().var()), 1e-30) for parts in zip(*right, strict=True)]

    def loss(books: Mapping[str, Tensor], k: int) -> Tensor:
        others = {name: tensor.detach() for name, tensor in gm.named_parameters()}
        found = _numbers(torch.func.functional_call(gm, {**others, **books}, tuple(batches[k])))
        pairs = zip(found, right[k], sizes, strict=True)
        return torch.stack(
            [(new - old).square().mean() / size for new, old, size in pairs if new.numel()]
        ).sum()

    def off(books: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return math.sqrt(sum(float(loss(books, k)) for k in judges) / len(judges))

    with torch.random.fork_rng(devices=()):
        before = off(held)
        made, after = None, before
        for books in _adam(held, lambda books, step: loss(books, taught[step % len(taught)]), steps):
            now = off(books)
            if made is None or now < after:
                made, after = books, now
    if made is None:
        return "the answers give the codebooks no gradient"
    if not after < before:
        return f"it brought answers no nearer: {before:.2%} of their spread off, {after:.2%} after it"
    for name, book in made.items():
        setattr(gm, name, book)
    return Distilled(before, after)


def _adam(
    held: Mapping[str, Tensor], loss: Callable[[Mapping[str, Tensor], int], Tensor], steps: int
) -> Iterator[dict[str, Tensor]]:
    """The codebooks after each eighth of so many steps; none where the loss does not depend on them."""
    books = {name: book.clone().requires_grad_() for name, book in held.items()}
    rows = [(book != 0).any(1, keepdim=True) for book in held.values()]
    rates = [
        _RATE * float(book[kept[:, 0]].square().mean().sqrt())
        for book, kept in zip(held.values(), rows, strict=True)
    ]
    optimiser = torch.optim.Adam(
        [{"params": [book], "lr": rate} for book, rate in zip(books.values(), rates, strict=True)]
    )
    for step in range(steps):
        with torch.enable_grad():
            value = loss(books, step)
        if not value.requires_grad:
            return
        gradients = torch.autograd.grad(value, list(books.values()), allow_unused=True)
        for group, rate, book, gradient, kept in zip(
            optimiser.param_groups, rates, books.values(), gradients, rows, strict=True
        ):
            group["lr"] = rate * (1 - step / steps)
            book.grad = torch.zeros_like(book) if gradient is None else gradient * kept
        optimiser.step()
        if (step + 1) % max(1, steps // _LOOKS) == 0 or step + 1 == steps:
            yield {name: book.detach().clone() for name, book in books.items()}


def _passes_codes(gm: fx.GraphModule, names: Collection[str]) -> bool:
    """Whether an operator of ours, which rounds, reads what comes of these constants."""
    reach: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.target in names:
            reach.add(node)
        elif any(source in reach for source in node.all_input_nodes):
            reach.add(node)
            if isinstance(node.target, OpOverload) and node.target.namespace == "fastrec":
                return True
    return False


def _numbers(answers: Sequence[Tensor]) -> list[Tensor]:
    """The floating-point outputs, each in one row."""
    return [answer.flatten() for answer in answers if answer.is_floating_point()]
