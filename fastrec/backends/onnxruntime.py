"""ONNX Runtime: packed matrix products, the fastest of the libraries at few rows.

Its `Gather` is slow over many rows and cheap over few, so who gathers is a setting; either way large tables are
shared with the graph, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from .base import Session, Translated
from .common import refuse_bfloat16
from .onnx_backend import Front, OnnxBackend
from .onnx_forms import for_onnx_runtime
from .onnx_tables import tables_as_inputs
from .row_sums import sums_by_row

__all__ = ["OnnxRuntime", "session_options"]


@dataclass(frozen=True)
class OnnxRuntime(OnnxBackend):
    """Run the graph in one ONNX Runtime session, in float32, and in 8-bit integers where the graph says so.

    `lookups` says who gathers embedding rows: "torch", before the session (best at many rows), or "session",
    inside it (best at few, where each torch call counts).

    Cost: seconds to compile; the session keeps packed copies of its weight matrices, and copies of tables below 1 MiB that it
    gathers itself.

    Example: `OnnxRuntime().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[Sequence[str]] = ("onnxruntime",)

    def written(self, gm: fx.GraphModule, *, coded: bool) -> tuple[fx.GraphModule, bool]:
        """In the forms it is fastest at, sums of coded rows each by itself. Raises `BackendError` for products in bfloat16."""
        refuse_bfloat16(gm, self.name, "has no products in bfloat16 on processors")
        gm = for_onnx_runtime(gm)
        return (sums_by_row(gm) if coded else gm), coded

    def session(self, translated: Translated, front: Front) -> Session:
        """One `InferenceSession`."""
        return _OnnxSession(translated, front)


def session_options() -> Any:
    """How sessions run, as `onnxruntime.SessionOptions`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Spinning threads burn a core between calls and fight with other sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What stands in floats between codes stays so: it would be put into integers as well, coarser than anyone asked.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    return options


class _OnnxSession(Session):
    """One `InferenceSession`, fed with views of the caller's tensors."""

    def __init__(self, model: Translated, front: Front) -> None:
        import onnxruntime

        options = session_options()
        proto, lent = tables_as_inputs(model.proto, model.constants)
        self._tables = {name: model.constants[name].numpy() for name in lent}
        # These are copied as the session is made, or read in place for as long as it lives, as versions go.
        copied = [name for name in model.constants if name not in self._tables]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(model.constants[name].numpy()) for name in copied]
        options.add_external_initializers(copied, values)
        self._kept = (options, values, model.constants)
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self._session = session
        # The Python wrapper checks the feed's names again on each call: some 2 us.
        self._run: Callable[..., list[Any]] = getattr(session, "_sess", session).run
        self._front = front
        self._feeds = tuple(enumerate(model.inputs))
        self._outputs = [item.name for item in session.get_outputs()]
        self.resident_bytes = model.copied_bytes

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""
        if self._front is not None:
            tensors = self._front(*tensors)
        feed = {name: tensors[index].numpy(force=True) for index, name in self._feeds}
        feed.update(self._tables)
        return tuple([torch.from_numpy(array) for array in self._run(self._outputs, feed, None)])
