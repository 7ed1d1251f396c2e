"""Whether two answers are the same: their form first, then their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..measure import fidelity
from ..trees import describe

__all__ = ["Allowed", "Answer", "alike", "off", "same_form", "same_values"]


@dataclass(frozen=True)
class Answer:
    """What both gave at one place, flat."""

    where: str
    expected: list[Tensor]
    got: list[Tensor]


@dataclass(frozen=True)
class Allowed:
    """How far numbers may be off: `atol + rtol |expected|`, or float rounding alone where `atol` is None; `whole`: integers not at all."""

    atol: float | None
    rtol: float
    said: str
    whole: bool = True


def same_form(where: str, expected: Any, got: Any) -> Answer:
    """Both answers flat. Raises `AssertionError` unless containers, keys, shapes and dtypes are the same."""
    old: list[tuple[str, Tensor]] = []
    new: list[tuple[str, Tensor]] = []
    if describe(expected, "answer", old) != describe(got, "answer", new):
        raise AssertionError(
            f"{where}: got {_told(got)}, expected {_told(expected)}, with the same containers, keys and order"
        )
    for (name, right), (_, ours) in zip(old, new, strict=True):
        if right.shape != ours.shape:
            raise AssertionError(
                f"{where}, {name}: got shape {tuple(ours.shape)}, expected {tuple(right.shape)}"
            )
        if right.dtype != ours.dtype:
            raise AssertionError(f"{where}, {name}: got {ours.dtype}, expected {right.dtype}")
    return Answer(where, [tensor for _, tensor in old], [tensor for _, tensor in new])


def same_values(answers: Sequence[Answer], allowed: Allowed) -> None:
    """Raise `AssertionError` where numbers are further off than allowed, with the worst of them.

    What rounding may do to one number is known by the spread of many, so all answers are judged together.
    """
    for index in range(len(answers[0].expected)):
        pieces = [
            (one.where, _plain(one.expected[index]), _plain(one.got[index]))
            for one in answers
            if one.expected[index].numel()
        ]
        if not pieces:
            continue
        if pieces[0][1].is_floating_point():
            if allowed.atol is None and alike([old for _, old, _ in pieces], [new for _, _, new in pieces]):
                continue
            most = [(allowed.atol or 0.0) + allowed.rtol * _size(old) for _, old, _ in pieces]
        elif allowed.whole:
            most = [torch.zeros(old.shape) for _, old, _ in pieces]
        else:
            continue
        beyond = [off(old, new) - one for (_, old, new), one in zip(pieces, most, strict=True)]
        worst = max(range(len(pieces)), key=lambda k: float(beyond[k].max()))
        if float(beyond[worst].max()) <= 0.0:
            continue
        where, old, new = pieces[worst]
        place = tuple(int(k) for k in np.unravel_index(int(beyond[worst].argmax()), tuple(old.shape)))
        at = f"[{', '.join(map(str, place))}]" if place else ""
        said = allowed.said if old.is_floating_point() else "nothing, as these are no floats"
        raise AssertionError(
            f"{where}, output {index}{at}: got {new[place].item():.9g}, expected {old[place].item():.9g}, which differ by "
            f"{float(off(old, new)[place]):.3g}; allowed is {said}"
        )


def alike(expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    """Whether all these numbers, judged together, are equal up to float rounding."""
    old, new = (torch.cat([tensor.flatten() for tensor in some]) for some in (expected, got))
    return fidelity([old], [new]).exact


def off(old: Tensor, new: Tensor) -> Tensor:
    """|new - old| in float64: 0 where both are the same infinity or NaN, infinite where only one is finite."""
    a, b = old.double(), new.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf, torch.inf)


def _size(old: Tensor) -> Tensor:
    return old.double().abs().nan_to_num(0.0, 0.0, 0.0)


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _told(answer: Any) -> str:
    """The containers of an answer, in words."""
    if isinstance(answer, Tensor):
        return "a tensor"
    if isinstance(answer, dict):
        return f"a {type(answer).__name__} of {', '.join(map(repr, answer)) or 'nothing'}"
    if isinstance(answer, (list, tuple)):
        return f"a {type(answer).__name__} of {len(answer)}"
    return f"a {type(answer).__name__}"
