"""ONNX Runtime: packed matrix products, the fastest of the libraries at few rows.

Its `Gather` is slow over many rows and cheap over few, so who gathers is a setting; either way large tables are
shared with the graph, not copied.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import BackendUnavailable
from ..program import Program
from .base import Backend, Session, Translated
from .common import captured, failure, refuse_bfloat16
from .onnx_export import export_onnx
from .onnx_forms import for_onnx_runtime
from .onnx_tables import tables_as_inputs
from .row_sums import has_codes, sums_by_row
from .split import front_of, split_lookups, split_picks

__all__ = ["OnnxRuntime", "session_options"]


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """Run the graph in one ONNX Runtime session, in float32, and in 8-bit integers where the graph says so.

    `lookups` says who gathers embedding rows: "torch", before the session (best at many rows), or "session",
    inside it (best at few, where each torch call counts).

    Cost: seconds to compile; the session keeps packed copies of its weight matrices, and copies of tables below 1 MiB that it
    gathers itself.

    Example: `OnnxRuntime().compile(capture(program))(ids, dense)`.
    """

    name: ClassVar[str] = "onnxruntime"

    lookups: Literal["torch", "session"] = "torch"

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None."""
        for package in ("onnxruntime", "onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: pip install onnxruntime onnx onnxscript"
        return None

    @property
    def label(self) -> str:
        """`onnxruntime`, saying so when the lookups run inside."""
        return self.name if self.lookups == "torch" else f"{self.name} (lookups inside)"

    def compile(self, program: Program) -> Session:
        """Export the graph with free batch sizes and load it.

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
            coded = has_codes(gm)
            front = split.moved
            if front is not None:
                gm = split.dense
            refuse_bfloat16(gm, self.name, "has no products in bfloat16 on processors")
            gm = for_onnx_runtime(gm)
            if coded:
                gm = sums_by_row(gm)
            return replace(export_onnx(gm, self.name, outside=True), front=front, alike=coded)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error

    def open(self, translated: Translated, program: Program) -> Session:
        """The session of such a model. Raises as `compile` does."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise BackendUnavailable(
                "onnxruntime is not installed: pip install onnxruntime", backend=self.name
            )
        try:
            front = front_of(translated.front, program.batch, alike=translated.alike)
            session = _OnnxSession(translated, front)
            session(*program.batch)
            session.translated = translated
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error
        return session


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

    def __init__(self, model: Translated, front: Callable[..., tuple[Tensor, ...]] | None) -> None:
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
