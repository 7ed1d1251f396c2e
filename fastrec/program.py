"""The program: a model, an example batch in the model's own form, and how the two fit together."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .inputs import Layout

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """A model with one example batch.

    `model.<entry>` is called with `batch` the way `layout` says. A captured program has an
    `fx.GraphModule` as its model; its batch is the tuple of flat tensors in `layout.features` order and its entry
    is `forward`.
    """

    model: nn.Module
    batch: Any
    layout: Layout
    entry: str = "forward"
    calibration: tuple[Any, ...] = ()

    def draft(self) -> nn.Module:
        """A structural copy of the model that shares every tensor with it.

        Replace tensors on the draft; never write into them.
        """
        memo: dict[int, Any] = {}
        for tensor in _tensors(self.model):
            memo[id(tensor)] = tensor
        return copy.deepcopy(self.model, memo)

    def with_model(self, model: nn.Module) -> Program:
        """The same program with another model of the same calling form."""
        return replace(self, model=model)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Every tensor a module tree holds: parameters, buffers, and tensors kept as plain attributes."""
    found: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        found.extend(value for value in vars(module).values() if isinstance(value, Tensor))
    return found
