"""torch's own compiler, ahead of time: one shared library in which everything but matrix products is fused."""

from __future__ import annotations

import operator
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..errors import BackendError, BackendUnavailable, InputError
from ..program import Program
from ..quiet import quiet
from .base import Backend, Session
from .common import (
    captured,
    example_of,
    export_free,
    failure,
    refuse_bfloat16,
    refuse_reference,
    tensor_bytes,
)
from .direct import direct
from .inductor_ops import as_known
from .split import front_of, split_picks

__all__ = ["Inductor"]

_SHARED = 1024 * 1024
_FORMS = 4096
# Products of codes that are generated with their graph take 2 us in place of oneDNN's 50, and seconds each to compile.
_GENERATED = 12


@dataclass(frozen=True)
class Inductor(Backend):
    """Compile the graph with AOTInductor, for any number of rows.

    Lookups, pooling, crosses and activations become a few fused loops, so it suits models of many small
    operations. With `freeze`, weight matrices are packed for oneDNN: faster at many rows, slower at few. Weights in 8-bit
    integers are packed always, and the rounding of activations is fused with what is in front of it.

    Cost: a C++ compiler and 5 to 60 s to compile; constants under 1 MiB are copied into the library, larger
    ones are shared with the graph.

    Example: `Inductor().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "inductor"

    freeze: bool = False

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None and shutil.which("clang++") is None:
            return f"no C++ compiler ({compiler}): install g++, or set CXX to one"
        return None

    @property
    def label(self) -> str:
        """`inductor`, saying so when weights are packed."""
        return f"{self.name} (packed weights)" if self.freeze else self.name

    def compile(self, program: Program) -> Session:
        """Generate, compile and load the library; its files are removed once it is loaded.

        Raises `BackendUnavailable` without a compiler, `BackendError` for a graph it cannot take.
        """
        reason = self.unavailable()
        if reason is not None:
            raise BackendUnavailable(reason, backend=self.name)
        gm = captured(program, self.name)
        try:
            split = split_picks(gm)
            front = front_of(split.moved, program.batch)
            if front is not None:
                gm = split.dense
            refuse_bfloat16(gm, self.name, "adds up one row in another order than the same among others")
            known, maps = as_known(gm, self.name)
            refuse_reference(known, self.name)
            lifted, constants = _lift(known)
            with (
                quiet(),
                tempfile.TemporaryDirectory(prefix="fastrec-", ignore_cleanup_errors=True) as folder,
            ):
                exported = export_free(lifted, self.name)
                runner = _build(exported, os.path.join(folder, "graph.so"), self.freeze, maps)
            inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
            size = tensor_bytes(exported.state_dict.values())
            # Of no rows there is nothing to be quick about, and products of codes divide by their number.
            empty = direct(gm, example_of(inputs)) if maps else None
            session = _InductorSession(runner, constants, inputs, size, front, empty)
            session(*program.batch)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot be compiled", self.name) from error
        return session


class _InductorSession(Session):
    """A loaded library; large constants are handed to it with every call, as pointers.

    Generated code trusts its inputs' types, sizes and row-major order, so these are checked here: what does not
    fit would be read out of bounds.
    """

    def __init__(
        self,
        runner: Any,
        constants: tuple[Tensor, ...],
        inputs: list[fx.Node],
        size: int,
        front: Callable[..., tuple[Tensor, ...]] | None,
        empty: Callable[..., tuple[Tensor, ...]] | None,
    ) -> None:
        self._run: Callable[[tuple[Tensor, ...]], list[Tensor]] = runner.run
        self._constants = constants
        self._inputs = [node.meta["val"] for node in inputs]
        self._front, self._empty = front, empty
        self._fitting: set[tuple[Any, ...]] = set()
        self.resident_bytes = size

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch. Raises `InputError` for tensors of other types or sizes than those captured."""
        if self._front is not None:
            tensors = self._front(*tensors)
        form = tuple([(tensor.shape, tensor.dtype) for tensor in tensors])
        if form not in self._fitting:
            self._check(form)
            if self._empty is not None and any(0 in shape for shape, _ in form):
                with torch.no_grad():
                    return self._empty(*tensors)
            if len(self._fitting) < _FORMS:
                self._fitting.add(form)
        for tensor in tensors:
            if tensor.requires_grad or not tensor.is_contiguous():
                tensors = tuple([tensor.detach().contiguous() for tensor in tensors])
                break
        return tuple(self._run(self._constants + tensors))

    def _check(self, form: tuple[tuple[torch.Size, torch.dtype], ...]) -> None:
        if len(form) != len(self._inputs):
            raise InputError(f"{len(form)} tensors given, the graph takes {len(self._inputs)}")
        sizes: dict[str, int] = {}
        for index, ((shape, dtype), expected) in enumerate(zip(form, self._inputs, strict=True)):
            fits = dtype is expected.dtype and len(shape) == expected.ndim
            for got, size in zip(shape, expected.shape, strict=False):
                fits = fits and got == (
                    sizes.setdefault(str(size), got) if isinstance(size, torch.SymInt) else size
                )
            if not fits:
                raise InputError(
                    f"input {index}: got {dtype} of shape {tuple(shape)}, expected {expected.dtype} of shape "
                    f"{tuple(expected.shape)} (the same letter, the same size)"
                )


def _lift(gm: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The graph with its large constants as leading inputs, and those constants.

    What stays inside is written into the library, so tables would be copied there.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    constants: list[Tensor] = []
    for node in gm.graph.nodes:
        value = operator.attrgetter(node.target)(gm) if node.op == "get_attr" else None
        # Codes of weights are packed as the library is made.
        if (
            isinstance(value, Tensor)
            and value.dtype is not torch.int8
            and value.numel() * value.element_size() >= _SHARED
        ):
            copies[node] = graph.placeholder(f"shared_{len(constants)}")
            constants.append(value.detach())
            copies[node].meta["val"] = constants[-1]
    for node in gm.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    return fx.GraphModule(gm, graph), tuple(constants)


def _compile(exported: torch.export.ExportedProgram, settings: dict[str, Any]) -> object:
    from torch._inductor import aot_compile, config

    gm = exported.module(check_guards=False)
    assert isinstance(gm, fx.GraphModule)
    args, _ = exported.example_inputs
    with torch.no_grad(), config.patch(settings):
        return aot_compile(gm, args)


def _build(exported: torch.export.ExportedProgram, path: str, freeze: bool, maps: int) -> Any:
    """`maps` counts the linear maps in 8-bit integers, which are packed; the products of a few of them are generated."""
    from torch._inductor.exc import InductorError

    settings: dict[str, Any] = {"aot_inductor.output_path": path, "freezing": freeze or maps > 0}
    generated = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
    try:
        library = _compile(exported, settings | (generated if 0 < maps <= _GENERATED else {}))
    except InductorError:
        if not 0 < maps <= _GENERATED:
            raise
        # Another product of the graph, of matrices for each row say, has no template to be generated from.
        library = _compile(exported, settings)
    if not isinstance(library, str):
        raise BackendError("the compiler gave no shared library", backend=Inductor.name)
    # As many models as threads that may call at once: calls beyond that wait for one another.
    return torch._C._aoti.AOTIModelContainerRunnerCpu(library, min(16, max(4, os.cpu_count() or 1)))
