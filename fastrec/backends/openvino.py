"""OpenVINO: strong matrix products at many rows, a high fixed cost per call."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import BackendError, BackendUnavailable
from ..program import Program
from .base import Backend, Session, Translated
from .common import captured, failure, refuse_reference
from .onnx_export import export_onnx, in_one_piece, refuse_large
from .probe import crash_of
from .rounding import round_first
from .split import front_of, split_lookups, split_picks

__all__ = ["OpenVino"]


@dataclass(frozen=True)
class OpenVino(Backend):
    """Run the graph in OpenVINO's CPU plugin, in float32, and in bfloat16 where the graph says so.

    `lookups` says who gathers embedding rows: "torch", before the session, sharing the tables, or "session",
    inside it, with a copy of them (refused at 2 GiB). float32 is asked for by name: on many processors OpenVINO
    computes in bfloat16 unless told.

    Cost: seconds to compile; one infer request, with its activations, for each thread that calls.

    Example: `OpenVino().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "openvino"
    own_threads: ClassVar[bool] = True

    lookups: Literal["torch", "session"] = "torch"

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None."""
        for package in ("openvino", "onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: pip install openvino onnx onnxscript"
        return None

    @property
    def label(self) -> str:
        """`openvino`, saying so when the lookups run inside."""
        return self.name if self.lookups == "torch" else f"{self.name} (lookups inside)"

    def compile(self, program: Program) -> Session:
        """Export the graph with free batch sizes and compile it.

        Raises `BackendUnavailable` without the package, `BackendError` for a graph it cannot take.
        """
        return self.open(self.translate(program), program)

    def translate(self, program: Program) -> Translated:
        """The graph as an ONNX model, its free sizes free, its large constants outside, and what runs in front of it."""
        reason = self.unavailable()
        if reason is not None:
            raise BackendUnavailable(reason, backend=self.name)
        gm = captured(program, self.name)
        try:
            split = split_lookups(gm) if self.lookups == "torch" else split_picks(gm)
            front = split.moved
            if front is not None:
                gm = split.dense
            refuse_reference(gm, self.name)
            refuse_large(gm, self.name)
            return replace(export_onnx(round_first(gm), self.name, outside=True), front=front)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error

    def open(self, translated: Translated, program: Program) -> Session:
        """The session of such a model, its constants copied into it. Raises as `compile` does."""
        if importlib.util.find_spec("openvino") is None or importlib.util.find_spec("onnx") is None:
            raise BackendUnavailable(
                "openvino or onnx is not installed: pip install openvino onnx", backend=self.name
            )
        try:
            front = front_of(translated.front, program.batch)
            session = _OpenVinoSession(translated, front)
            session(*program.batch)
            session.translated = translated
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error
        return session


# Some graphs of attention with free sizes end the process.
_COMPILE = """
import json, sys
import openvino
core = openvino.Core()
core.compile_model(core.read_model(sys.stdin.buffer.read()), "CPU", json.loads(sys.argv[1]))
"""


class _OpenVinoSession(Session):
    """One compiled model; each thread has an infer request of its own."""

    def __init__(self, model: Translated, front: Callable[..., tuple[Tensor, ...]] | None) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        proto = in_one_piece(model)
        crash = crash_of(_COMPILE, proto, json.dumps(settings))
        if crash is not None:
            raise BackendError(f"OpenVINO {crash} as it compiled this graph", backend=OpenVino.name)
        core = openvino.Core()
        self._model = core.compile_model(core.read_model(proto), "CPU", settings)
        names = {name: index for index, port in enumerate(self._model.inputs) for name in port.names}
        self._feeds = tuple((names[name], index) for index, name in enumerate(model.inputs) if name in names)
        self._count = len(self._model.outputs)
        self._tensor = openvino.Tensor
        self._front = front
        self._local = threading.local()
        self.resident_bytes = len(proto)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""
        if self._front is not None:
            tensors = self._front(*tensors)
        request: Any = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        arrays = [(port, tensors[index].contiguous().numpy(force=True)) for port, index in self._feeds]
        for port, array in arrays:
            request.set_input_tensor(port, self._tensor(array, shared_memory=True))
        request.infer()
        # The request reuses its output memory on the next call.
        return tuple([torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(self._count)])
