"""A module that stays as it was made: what would turn, move, train or switch it says so, and what to do instead."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .errors import InputError
from .program import Program

__all__ = ["Sealed"]


class Sealed(nn.Module, ABC):
    """A module in evaluation mode, whose dtype, device and switches are for good those of the model that it was made of.

    What would change them raises `InputError`, and what would not does nothing, as `cpu()` where that is there already. A module that
    holds this one may be moved and trained for the sake of the others: this one stays as it is, with one warning.
    """

    def __init__(self) -> None:
        super().__init__()
        super().train(False)
        self._warned = set[str]()

    @property
    @abstractmethod
    def original(self) -> Program:
        """The program that it was made of."""

    def train(self, mode: bool | None = None) -> Self:
        """Stays in evaluation mode: there is nothing to train.

        Raises `InputError` where no mode is given. A module that holds this one gives it, and goes on, with one warning.
        """
        said = "a compressed model cannot be trained: train the original, and compress it again"
        if mode is None:
            raise InputError(said)
        if mode:
            self._warn(f"{said}. It stays in evaluation mode")
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Stays where it is and in its dtype, and raises `InputError` where something else is asked for."""
        return self._asked("to", *args, **kwargs)

    def half(self) -> Self:
        """As `to`."""
        return self._asked("half")

    def bfloat16(self) -> Self:
        """As `to`."""
        return self._asked("bfloat16")

    def float(self) -> Self:
        """As `to`."""
        return self._asked("float")

    def double(self) -> Self:
        """As `to`."""
        return self._asked("double")

    def type(self, dst_type: Any) -> Self:
        """As `to`."""
        return self._asked("type", dst_type)

    def cpu(self) -> Self:
        """As `to`."""
        return self._asked("cpu")

    def cuda(self, device: Any = None) -> Self:
        """As `to`."""
        return self._asked("cuda", device)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(self, name) and not self._is_own(name):
            model, none = self.original.model, object()
            held = getattr(model, name, none)
            if held is not none and held is not value:
                raise InputError(
                    f"{name} is an attribute of the original {type(model).__name__}, and the compressed model was made with what it had then: set it on "
                    "the model, and compress that again, one compressed model for each setting"
                )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: ARG002 - there is nothing below
        """What a module that holds this one does to all that it holds."""
        if said := self._changed(lambda module: module._apply(fn)):  # type: ignore[no-untyped-call]  # torch has no type there
            self._warn(f"{said}. It stays as it is")
        return self

    def _asked(self, name: str, *args: Any, **kwargs: Any) -> Self:
        if said := self._changed(lambda module: getattr(module, name)(*args, **kwargs)):
            raise InputError(f"{name}: {said}")
        return self

    def _changed(self, change: Callable[[nn.Module], object]) -> str:
        """Why something is not done that would change a module of the original's tensors; nothing where it would not."""
        module, held = nn.Module(), _dtypes(self.original)
        for dtype in held:
            module.register_buffer(str(dtype).rpartition(".")[2], torch.empty(0, dtype=dtype))
        served = "models are compressed and served on the CPU"
        try:
            change(module)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # a device that is not there
            return f"{served} ({type(error).__name__}: {error})"
        for old, tensor in zip(held, list(module.buffers()), strict=True):
            if tensor.device.type != "cpu":
                return served
            if tensor.dtype is not old:
                return (
                    f"a compressed model computes in the dtype that it was made for, {old}: turn the original into {tensor.dtype}, and "
                    "compress that"
                )
        return ""

    def _is_own(self, name: str) -> bool:
        return any(name in vars(kind).get("__annotations__", ()) for kind in type(self).__mro__)

    def _warn(self, said: str) -> None:
        if said not in self._warned:
            self._warned.add(said)
            warnings.warn(said, stacklevel=3)


def _dtypes(program: Program) -> list[torch.dtype]:
    """The dtypes of a program's tensors; where it holds none, as one that was loaded, of its features."""
    tensors = [*program.model.parameters(), *program.model.buffers()]
    found = [tensor.dtype for tensor in tensors] or [feature.dtype for feature in program.layout.features]
    floating = [dtype for dtype in found if dtype.is_floating_point]
    return list(dict.fromkeys(floating or [torch.float32]))
