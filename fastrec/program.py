"""The program: a model, an example batch in the model's own form, and how the two fit together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import InputError
from .inputs import Feature, Layout, read_layout
from .rows import Run, find_rows
from .trees import describe
from .unread import without_unread

__all__ = ["Answers", "Program", "read_batch", "target_of"]

Answers = Callable[[list[Tensor]], Sequence[Tensor]]
"""Flat outputs for flat inputs."""


@dataclass(frozen=True)
class Program:
    """A model with one example batch.

    `model.<entry>` is called with `batch` the way `layout` says. A captured program has an
    `fx.GraphModule` as its model; its batch is the tuple of flat tensors in `layout.features` order and its entry
    is `forward`. `origin` is what the model was before anything approximated it, for those who learn from it; `unchecked` says which of the
    model's own checks a graph does not make.
    """

    model: nn.Module
    batch: Any
    layout: Layout
    entry: str = "forward"
    calibration: tuple[Any, ...] = ()
    origin: nn.Module | None = None
    unchecked: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        target: nn.Module | Callable[..., Any],
        batch: Any,
        calibration: Iterable[Any] = (),
        rows: Callable[[Layout, Run, Sequence[Tensor], Sequence[Tensor]], Layout] = find_rows,
    ) -> Program:
        """The program of a model, or of one of its bound methods, and an example batch.

        The model is run a few times, as a private copy, to see its answer and which dimensions count rows, by `rows`.

        Raises `InputError` where the batch holds no tensor or the model does not take it.
        """
        model, entry = target_of(target)
        layout, tensors = read_batch(getattr(model, entry), batch)
        _check_devices(model, layout.features, tensors)
        program = cls(model, batch, layout, entry, tuple(calibration))
        private = program.private()
        try:
            outputs, answer = private.run(tensors)
        except Exception as error:  # whatever a stranger's model raises, named
            raise InputError(
                f"the model does not take this batch: {type(error).__name__}: {error}. "
                f"It was called with {', '.join(layout.parameters)}."
            ) from error
        layout, tensors = without_unread(layout, tensors, private.function)
        layout = replace(layout, outputs=answer)
        private = replace(private, layout=layout)
        return replace(program, layout=rows(layout, private.answers, tensors, outputs))

    @property
    def graph(self) -> fx.GraphModule:
        """The model of a captured program; another one has no such attribute."""
        if not isinstance(self.model, fx.GraphModule):
            raise AttributeError(
                f"the program of a {type(self.model).__name__} is not captured: it has no graph"
            )
        return self.model

    def draft(self, *, private_buffers: bool = False) -> nn.Module:
        """A structural copy of the model that shares every tensor with it.

        Replace tensors on the draft; never write into them. With `private_buffers` the copy has buffers of its
        own, so that running it leaves the model as it is even where a forward pass writes to its buffers.
        """
        memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(self.model)}
        if private_buffers:
            memo.update((id(buffer), buffer.detach().clone()) for buffer in self.model.buffers())
        return copy.deepcopy(self.model, memo)

    def private(self, *, buffers: bool = True) -> Program:
        """The same program with a structural copy of the model, in evaluation mode; with `buffers` of its own, calls leave the model as it is."""
        return self.with_model(self.draft(private_buffers=buffers).eval())

    def with_model(self, model: nn.Module) -> Program:
        """The same program with another model of the same calling form."""
        return replace(self, model=model)

    def bare(self) -> Program:
        """The same program without what only techniques look at."""
        return replace(self, calibration=(), origin=None)

    @property
    def function(self) -> Callable[..., Any]:
        """What is called to serve: the model itself, hooks and all, or one of its methods."""
        found: Callable[..., Any] = self.model if self.entry == "forward" else getattr(self.model, self.entry)
        return found

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model is called with a batch of the example's form."""
        return self.layout.call_of(batch)

    def flat(self, batch: Any) -> list[Tensor]:
        """The flat tensors of a batch, which ask for no gradient."""
        args, kwargs = self.call_of(batch)
        return [tensor.detach() for tensor in self.layout.flatten(args, kwargs)]

    def answers(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The model's flat outputs for these flat inputs, without gradients."""
        return self.run(tensors)[0]

    def called(self, tensors: Sequence[Tensor]) -> Any:
        """The model's answer, in its own structure, for these flat inputs, without gradients."""
        args, kwargs = self.layout.arguments(tensors)
        with torch.no_grad():
            return self.function(*args, **kwargs)

    def run(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """The model's flat outputs for these flat inputs, and the structure of its answer, without gradients."""
        answer = self.called(tensors)
        found: list[tuple[str, Tensor]] = []
        tree = describe(answer, "output", found)
        return [tensor for _, tensor in found], tree


def read_batch(function: Callable[..., Any], batch: Any) -> tuple[Layout, list[Tensor]]:
    """How `function` is called with a batch, and its flat tensors. Raises `InputError` where there is nothing in it."""
    layout, tensors = read_layout(function, batch)
    if not tensors:
        raise InputError(f"the batch holds no tensor: got {type(batch).__name__}. Give one real batch.")
    if not any(tensor.numel() for tensor in tensors):
        raise InputError("the batch is empty: every tensor has 0 elements. Give one real batch.")
    return layout, tensors


def target_of(target: Any) -> tuple[nn.Module, str]:
    """The module and the name of the method that is served. Raises `InputError` for anything else."""
    if isinstance(target, nn.Module):
        return target, "forward"
    owner, name = getattr(target, "__self__", None), getattr(target, "__name__", "")
    if isinstance(owner, nn.Module) and name:
        return owner, name
    cure = "; make an instance of it" if isinstance(target, type) and issubclass(target, nn.Module) else ""
    raise InputError(
        f"expected a torch module or a method of one, got {type(target).__name__} {target!r:.80}{cure}"
    )


def _check_devices(model: nn.Module, features: Sequence[Feature], tensors: Sequence[Tensor]) -> None:
    """Raises `InputError` unless everything is in main memory."""
    places = {f"{feature.name!r}": tensor.device for feature, tensor in zip(features, tensors, strict=True)}
    places |= {f"the model's {name!r}": parameter.device for name, parameter in model.named_parameters()}
    for name, device in places.items():
        if device.type != "cpu":
            raise InputError(
                f"{name} is on {device}, expected cpu: models are compressed and served on the CPU. "
                "Move model and batch there with .cpu()."
            )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor a module tree holds: parameters, buffers, and tensors kept in plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from _held(list(vars(module).values()), 0)


def _held(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)) and depth < 4:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _held(item, depth + 1)
