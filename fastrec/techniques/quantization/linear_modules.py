"""Linear maps of a model that could not be captured, as its modules hold them.

A module is taken where it is a plain `nn.Linear` of which nobody but its own call reads the weight: that is watched while
the calibration runs. It is turned in place, on a draft, so it is the same one for whoever holds it: twice in the model,
called several times, kept in a list. Its range is one for all its calls.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ops.layers import Int8Linear
from ...program import Program
from ...request import Once
from ..base import Skip
from .calibration import RULE, evenly, judge, rows_kept
from .layers import Layer
from .ranges import code_weight
from .sensitivity import moved

__all__ = ["calibrate_modules", "linear_modules", "module_sensitivities", "modules_in_int8"]


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of a model by the path of their module, each once; those in 8 bits as well."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def calibrate_modules(program: Program, sites: Collection[str]) -> tuple[list[Layer], list[Skip]]:
    """The best range of each of these linear maps on the calibration, and those left alone with their reasons.

    Raises `TechniqueError` for values that are not finite. Cost: a run of the model for each batch, and some products of
    each layer with rows of its input.
    """
    batches = _batches(program)
    model = program.draft(private_buffers=True).eval()
    skips: list[Skip] = []
    watched: dict[str, _Seen] = {}
    for name, module in linear_modules(model).items():
        if name in sites and not isinstance(module, Int8Linear):
            if reason := _unfit(module):
                skips.append(Skip(RULE, name, reason))
            else:
                watched[name] = _Watched.turn(module, len(batches))
    versions = {name: tensor._version for name, tensor in _tensors(model)}
    _answers(program.with_model(model), batches)
    written = [name for name, tensor in _tensors(model) if tensor._version != versions.get(name)]
    if written:
        reason = (
            f"the model writes to its own tensor {written[0]!r} on each call: a copy would have to share it"
        )
        return [], [Skip(RULE, "", reason)]
    layers = []
    for name, seen in watched.items():
        found = seen.reason or judge(name, seen.rows(), seen.weight.detach())
        if isinstance(found, str):
            skips.append(Skip(RULE, name, found))
        else:
            layers.append(found)
    return layers, skips


def modules_in_int8(program: Program, layers: Iterable[Layer]) -> tuple[nn.Module, dict[str, int]]:
    """A draft of the model with these layers in 8 bits, and the bytes of the tensors each adds; one weight's codes are kept once."""
    model = program.draft().eval()
    modules = linear_modules(model)
    made: dict[int, tuple[Tensor, Tensor]] = {}
    added: dict[str, int] = {}
    for layer in layers:
        weight = modules[layer.site].weight
        added[layer.site] = 0
        if id(weight) not in made:
            made[id(weight)] = codes, scale = code_weight(weight.detach())
            added[layer.site] = codes.nbytes + scale.nbytes
        Int8Linear.turn(modules[layer.site], *made[id(weight)], layer.range.scale, layer.range.zero)
    return model, added


def module_sensitivities(program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
    """How far the answer moves when one linear map alone is in 8 bits, for each that can be, or those of `sites`.

    The largest of batches and outputs: see `calibration.sensitivities`.
    """
    batches = _batches(program)
    layers, _ = calibrate_modules(program, linear_modules(program.model) if sites is None else sites)
    right = _answers(program.with_model(program.draft().eval()), batches)
    found = {}
    for layer in layers:
        alone, _ = modules_in_int8(program, [layer])
        answers = _answers(program.with_model(alone), batches)
        alike = [new.shape for new in answers] == [old.shape for old in right]
        # A model that branches on its numbers may answer otherwise altogether.
        parts = [moved(new, old) for new, old in zip(answers, right, strict=True)] if alike else [math.inf]
        found[layer.site] = max(parts, default=0.0)
    return found


@dataclass
class _Seen:
    """What a watched layer was given, and why it cannot be taken, if so."""

    weight: Tensor
    bias: Tensor | None
    parts: int
    reason: str = "no row of the calibration reaches it"
    kept: list[Tensor] = field(default_factory=list)
    barred: bool = False

    def bar(self, reason: str) -> None:
        if not self.barred:
            self.reason, self.barred = reason, True

    def keep(self, x: Tensor, y: Tensor) -> None:
        if x.dtype is not torch.float32 or y.dtype is not torch.float32:
            self.bar(f"it computes in {str(y.dtype).removeprefix('torch.')}")
        if self.barred:
            return
        self.reason = ""
        width = x.shape[-1]
        self.kept.append(evenly(x.reshape(-1, width), rows_kept(width, self.parts)))
        if (have := sum(map(len, self.kept))) > 4 * rows_kept(width):
            # A layer that is called in a loop: half as many rows of each call, of those to come as well.
            self.kept, self.parts = [evenly(torch.cat(self.kept), have // 2)], 2 * self.parts

    def rows(self) -> Tensor:
        rows = torch.cat(self.kept)
        return evenly(rows, rows_kept(rows.shape[1]))


class _Watched(nn.Linear):
    """A linear map that keeps rows of what it is given, and notes who else reads its tensors."""

    seen: _Seen

    @staticmethod
    def turn(linear: nn.Linear, batches: int) -> _Seen:
        """Makes one of `linear`, in place."""
        seen = _Seen(linear.weight, linear.bias, batches)
        linear.__class__ = _Watched
        linear.__dict__["seen"] = seen
        return seen

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what nn.Linear calls it
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if weight is not self.seen.weight or bias is not self.seen.bias:
            self.seen.bar("its weight is another at each call")
        y = functional.linear(input, weight, bias)
        self.seen.keep(input.detach(), y)
        return y

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            self.seen.bar(f"its {name} is read by more than its own call")
        return super().__getattr__(name)


def _unfit(module: nn.Linear) -> str:
    """Why a module stays as it is whatever calibration says; nothing where it may change."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return f"its class ({type(module).__name__}) or its forward is another than nn.Linear's"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    for tensor in (module.weight, module.bias):
        if tensor is not None and (type(tensor) is not nn.Parameter or tensor.dtype is not torch.float32):
            return f"it holds {type(tensor).__name__} of {str(tensor.dtype).removeprefix('torch.')}"
    return "" if bool(module.weight.isfinite().all()) else "its weights are not all finite"


def _batches(program: Program) -> list[list[Tensor]]:
    """The calibration batches as flat tensors; the example where there are none."""
    once = Once(program.layout.features)
    return [once.all(program.flat(batch)) for batch in program.calibration or (program.batch,)]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _answers(program: Program, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The model's answers of numbers to all batches, one after the other."""
    with torch.random.fork_rng(devices=()):
        answers = [answer for batch in batches for answer in program.answers(batch)]
    return [answer.detach() for answer in answers if answer.is_floating_point()]
