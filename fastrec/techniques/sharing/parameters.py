"""Equal parameters of a model that could not be captured: one, on a draft of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...program import Program
from ...request import Once
from ..base import Change, Skip
from .equal import digest, same_bits

__all__ = ["share_parameters"]


def share_parameters(
    program: Program, rule: str, least_bytes: int, only: Sequence[str] | None
) -> tuple[nn.Module, list[str], list[Change], list[Skip]]:
    """A draft of the model in which equal matrices are one parameter (the model itself where none are), the names of all its
    matrices, what was done, and what was not, with the reason.

    Nothing is done to a model that writes to a matrix as it runs. Cost: a run of the example, and a hash of the parameters.
    """
    model = program.draft().eval()
    found = [
        (f"{place}.{name}" if place else name, module, name, parameter)
        for place, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.ndim == 2
    ]
    names = [path for path, *_ in found]
    large = [one for one in found if one[3].nbytes >= least_bytes]
    written = _written(program, [one[3] for one in large]) if large else set()
    changes: list[Change] = []
    skipped: list[Skip] = []
    homes: dict[tuple[torch.Size, torch.dtype, bytes], tuple[str, nn.Parameter]] = {}
    seen: dict[int, str] = {}
    for path, _, _, parameter in large:
        if only is not None and path not in only:
            continue
        if id(parameter) in seen:
            skipped.append(Skip(rule, path, f"it is one tensor with {seen[id(parameter)]} already"))
            continue
        if reason := _unfit(parameter, id(parameter) in written):
            skipped.append(Skip(rule, path, reason))
            continue
        seen[id(parameter)] = path
        key = parameter.shape, parameter.dtype, digest(parameter)
        home, kept = homes.setdefault(key, (path, parameter))
        if kept is parameter or not same_bits(kept, parameter):
            continue
        for _, owner, own, other in found:
            if other is parameter:
                setattr(owner, own, kept)
        detail = f"equal to {home}, bit for bit: {parameter.nbytes} -> 0 bytes"
        changes.append(Change(rule, path, detail))
    return (model if changes else program.model), names, changes, skipped


def _unfit(parameter: nn.Parameter, written: bool) -> str:
    if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
        return f"it is a {type(parameter).__name__} of layout {parameter.layout}"
    return "the model writes to it on each call" if written else ""


def _written(program: Program, parameters: Sequence[nn.Parameter]) -> set[int]:
    """Those that a call of the model writes to."""
    before = [parameter._version for parameter in parameters]
    private = program.private()
    with torch.random.fork_rng(devices=()):
        private.answers(Once(program.layout.features).all(program.flat(program.batch)))
    return {id(one) for one, was in zip(parameters, before, strict=True) if one._version != was}
