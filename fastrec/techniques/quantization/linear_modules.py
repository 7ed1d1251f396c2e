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

__all__ = [
    "Seen",
    "answers_to",
    "calibrate_modules",
    "flat_batches",
    "linear_modules",
    "module_sensitivities",
    "modules_in_int8",
    "watch",
]


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of a model by the path of their module, each once; those in 8 bits as well."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def calibrate_modules(program: Program, sites: Collection[str]) -> tuple[list[Layer], list[Skip]]:
    """The best range of each of these linear maps on the calibration, and those left alone with their reasons.

    Raises `TechniqueError` for values that are not finite. Cost: a run of the model for each batch, and some products of
    each layer with rows of its input.
    """
    modules = linear_modules(program.model)
    wanted = {name for name in sites if not isinstance(modules.get(name), Int8Linear)}
    found = watch(program, wanted)
    if isinstance(found, str):
        return [], [Skip(RULE, "", found)]
    watched, unfit = found
    skips = [Skip(RULE, name, reason) for name, reason in unfit.items()]
    layers = []
    for name, seen in watched.items():
        layer = seen.reason or judge(name, seen.rows(), seen.weight.detach())
        if isinstance(layer, str):
            skips.append(Skip(RULE, name, layer))
        else:
            layers.append(layer)
    return layers, skips


def watch(program: Program, sites: Collection[str]) -> tuple[dict[str, Seen], dict[str, str]] | str:
    """What each of these linear maps is given on the calibration, and why others of them are not looked at.

    Text says why none can be. Cost: a run of the model for each batch.
    """
    batches = flat_batches(program)
    model = program.draft(private_buffers=True).eval()
    watched: dict[str, Seen] = {}
    reasons: dict[str, str] = {}
    for name, module in linear_modules(model).items():
        if name in sites:
            if reason := _unfit(module):
                reasons[name] = reason
            else:
                watched[name] = _Watched.turn(module, len(batches))
    versions = {name: tensor._version for name, tensor in _tensors(model)}
    answers_to(program.with_model(model), batches)
    written = [name for name, tensor in _tensors(model) if tensor._version != versions.get(name)]
    if written:
        return (
            f"the model writes to its own tensor {written[0]!r} on each call: a copy would have to share it"
        )
    return watched, reasons


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
    batches = flat_batches(program)
    layers, _ = calibrate_modules(program, linear_modules(program.model) if sites is None else sites)
    right = answers_to(program.private(buffers=False), batches)
    found = {}
    for layer in layers:
        alone, _ = modules_in_int8(program, [layer])
        answers = answers_to(program.with_model(alone), batches)
        alike = [new.shape for new in answers] == [old.shape for old in right]
        # A model that branches on its numbers may answer otherwise altogether.
        parts = [moved(new, old) for new, old in zip(answers, right, strict=True)] if alike else [math.inf]
        found[layer.site] = max(parts, default=0.0)
    return found


@dataclass
class Seen:
    """What a watched layer was given, and why it cannot be taken, if so."""

    weight: Tensor
    bias: Tensor | None
    parts: int
    reason: str = "no row of the calibration reaches it"
    kept: list[Tensor] = field(default_factory=list)
    barred: bool = False

    def bar(self, reason: str) -> None:
        """It cannot be taken, whatever comes."""
        if not self.barred:
            self.reason, self.barred = reason, True

    def keep(self, x: Tensor, y: Tensor) -> None:
        """One call of it: x (..., I) -> y (..., O)."""
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
        """Rows (n, I) of its input, spread over the calibration."""
        rows = torch.cat(self.kept)
        return evenly(rows, rows_kept(rows.shape[1]))


class _Watched(nn.Linear):
    """A linear map that keeps rows of what it is given, and notes who else reads its tensors."""

    seen: Seen

    @staticmethod
    def turn(linear: nn.Linear, batches: int) -> Seen:
        """Makes one of `linear`, in place."""
        seen = Seen(linear.weight, linear.bias, batches)
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


def flat_batches(program: Program) -> list[list[Tensor]]:
    """The calibration batches as flat tensors; the example where there are none."""
    once = Once(program.layout.features)
    return [once.all(program.flat(batch)) for batch in program.calibration or (program.batch,)]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def answers_to(program: Program, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The model's answers of numbers to all batches, one after the other."""
    with torch.random.fork_rng(devices=()):
        answers = [answer for batch in batches for answer in program.answers(batch)]
    return [answer.detach() for answer in answers if answer.is_floating_point()]
