"""torch's own kernels, one after the other, with the least overhead between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..graph import is_call
from ..ops.convolutions import INT8_CONVOLUTION
from ..program import Program
from .bags import as_bags
from .base import Backend, Session
from .common import failure
from .direct import direct, quickened
from .models import packed_session
from .packed_bfloat16 import pack_bfloat16
from .packed_int8 import pack_int8

__all__ = ["Eager", "in_torch"]


@dataclass(frozen=True)
class Eager(Backend):
    """Run the graph in torch, node by node.

    Nothing is compiled, and nothing copied but the weights of linear maps in 8-bit integers and in bfloat16, which are
    packed, so it always works. Each node costs 1 to 3 us beyond its arithmetic: best for few large operations, and
    where no other backend takes the graph. A model that could not be captured runs as its own code says, its
    `Int8Linear` modules packed.

    Example: `Eager().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "eager"
    modules: ClassVar[bool] = True

    def unavailable(self) -> str | None:
        """Always None."""
        return None

    def plain(self, program: Program) -> bool:
        """Where convolutions are in 8-bit integers: it has a kernel for linear maps alone."""
        gm = program.model
        return isinstance(gm, fx.GraphModule) and any(is_call(n, INT8_CONVOLUTION) for n in gm.graph.nodes)

    def compile(self, program: Program) -> Session:
        """Bind the constants and choose the quickest entry of each operator. Cost: two runs of the example."""
        if not isinstance(program.model, fx.GraphModule):
            return packed_session(program)
        try:
            packed, size = _packed(program.model)
            return _EagerSession(direct(packed, tuple(program.batch)), size)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error


def in_torch(program: Program) -> fx.GraphModule:
    """The captured program as `Eager` runs it, operator by operator: sums as bags, weights packed, quickest entries.

    Raises whatever the graph raises on its example. Cost: that of `Eager.compile`.
    """
    assert isinstance(program.model, fx.GraphModule)
    return quickened(_packed(program.model)[0], tuple(program.batch))


def _packed(gm: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """The graph as torch is to run it, and the bytes that were packed for it."""
    coded, size = pack_int8(as_bags(gm))
    packed, more = pack_bfloat16(coded)
    return packed, size + more


class _EagerSession(Session):
    def __init__(self, run: Callable[..., tuple[Tensor, ...]], size: int) -> None:
        self._run = run
        self.resident_bytes = size

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""
        for tensor in tensors:
            if tensor.requires_grad:
                # Constants carry no gradient, so only such an input would grow an autograd graph.
                with torch.no_grad():
                    return self._run(*tensors)
        return self._run(*tensors)
