"""Modules that compute by reference operators, in models that run as their own code says."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .linears import int8_linear
from .packed_linears import PackedLinear, pack

__all__ = ["Int8Linear"]


class Int8Linear(nn.Linear):
    """A linear map in 8-bit integers, `fastrec.ops.int8_linear`, in the place of one in float32; made by `turn`.

    x (..., I) float32 -> y (..., O) float32. Holds codes (O, I) int8, `weight_scale` (O,) and the bias; the float weight is
    gone, and who asks for `weight` gets the codes' numbers, worked out anew. What the map was not made for, another type or
    width, is left to torch, which refuses it as it did. `pack` makes it quick, where the machine has a kernel.
    """

    codes: Tensor
    weight_scale: Tensor
    x_scale: float
    x_zero: int
    packed: PackedLinear | None

    @classmethod
    def turn(
        cls, linear: nn.Linear, codes: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int
    ) -> None:
        """Makes this one of `linear`, in place, so that it is one for whoever holds it. Its tensors are not written to."""
        bias = linear.bias
        del linear.weight
        linear.__class__ = cls
        assert isinstance(linear, cls)
        linear.register_buffer("codes", codes)
        linear.register_buffer("weight_scale", weight_scale)
        linear.x_scale, linear.x_zero, linear.packed = x_scale, x_zero, None
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter of the class it stands for
        """What the codes stand for, (O, I) float32. Cost: a pass over them."""
        return self.codes * self.weight_scale[:, None]

    def pack(self) -> int:
        """Computes by the packed kernel from now on, where this machine's is right; gives the bytes that takes."""
        made = pack(self.codes, self.weight_scale, self.x_scale, self.x_zero)
        self.packed = made if isinstance(made, PackedLinear) else None
        return 0 if self.packed is None else self.packed.nbytes

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what nn.Linear calls it
        """The map of a batch."""
        if input.dtype is not torch.float32 or input.shape[-1:] != (self.in_features,):
            return functional.linear(input, self.weight, self.bias)
        x = input.detach() if input.requires_grad else input
        if self.packed is not None:
            return self.packed(x, self.bias)
        y: Tensor = int8_linear(x, self.codes, self.weight_scale, self.x_scale, self.x_zero, self.bias)
        return y
