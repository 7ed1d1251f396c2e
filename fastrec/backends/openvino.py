"""OpenVINO: strong matrix products at many rows, a high fixed cost per call."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..errors import BackendError
from .base import Session, Translated
from .common import refuse_reference
from .onnx_backend import Front, OnnxBackend
from .onnx_export import in_one_piece, refuse_large
from .probe import crash_of
from .rounding import round_first

__all__ = ["OpenVino"]


@dataclass(frozen=True)
class OpenVino(OnnxBackend):
    """Run the graph in OpenVINO's CPU plugin, in float32, and in bfloat16 where the graph says so.

    `lookups` says who gathers embedding rows: "torch", before the session, sharing the tables, or "session",
    inside it, with a copy of them (refused at 2 GiB). float32 is asked for by name: on many processors OpenVINO
    computes in bfloat16 unless told.

    Cost: seconds to compile; one infer request, with its activations, for each thread that calls.

    Example: `OpenVino().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "openvino"
    own_threads: ClassVar[bool] = True
    packages: ClassVar[Sequence[str]] = ("openvino", "onnx")

    def written(self, gm: fx.GraphModule, *, coded: bool) -> tuple[fx.GraphModule, bool]:  # noqa: ARG002 - torch sums coded rows
        """With what is rounded to bfloat16 rounded first. Raises `BackendError` for 8-bit products, and beyond 2 GiB."""
        refuse_reference(gm, self.name)
        refuse_large(gm, self.name)
        return round_first(gm), False

    def session(self, translated: Translated, front: Front) -> Session:
        """One compiled model, the constants copied into it."""
        return _OpenVinoSession(translated, front)


# Some graphs of attention with free sizes end the process.
_COMPILE = """
import json, sys
import openvino
core = openvino.Core()
core.compile_model(core.read_model(sys.stdin.buffer.read()), "CPU", json.loads(sys.argv[1]))
"""


class _OpenVinoSession(Session):
    """One compiled model; each thread has an infer request of its own."""

    def __init__(self, model: Translated, front: Front) -> None:
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
