"""The peers: other ways to serve the same model on the same CPU, each set up as its own documentation says.

Every peer has one shape: `missing()` says why it cannot run here, `prepare(work)` returns a callable that takes a batch
(the tuple of tensors the model takes) and returns the model's output tensor. Conversions between torch and the peer's
own arrays are inside that callable: whoever serves with it pays for them. `work` holds a private copy of the model's
weights for each peer, so no peer finds its rows warmed by the one before.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .models import Batch, Case

__all__ = ["BF16", "FP32", "PEERS", "Call", "Peer", "Work"]

Call = Callable[[Batch], Tensor]


class Work:
    """One case being prepared: its model, calibration batches, and a folder that lives as long as the run.

    The ONNX file is exported once and shared by the peers that read it.
    """

    def __init__(self, case: Case, calibration: Sequence[Batch], folder: Path) -> None:
        self.case = case
        self.original = case.build()
        self.calibration = tuple(calibration)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{case.name}-", dir=folder))

    def model(self) -> nn.Module:
        """A private copy of the model, weights included."""
        return copy.deepcopy(self.original)

    @property
    def example(self) -> Batch:
        return self.calibration[0]

    @functools.cached_property
    def names(self) -> list[str]:
        return [f"x{i}" for i in range(len(self.case.axes))]

    @functools.cached_property
    def dynamic_shapes(self) -> tuple[dict[int, Any] | None, ...]:
        axes = self.case.axes.values()
        return tuple(None if axis is None else {axis: torch.export.Dim.DYNAMIC} for axis in axes)

    @functools.cached_property
    def onnx_path(self) -> Path:
        """The model as ONNX by torch's own exporter, rows free."""
        path = self.folder / "model.onnx"
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                self.original,
                self.example,
                path,
                dynamo=True,
                input_names=self.names,
                dynamic_shapes=self.dynamic_shapes,
                verbose=False,
            )
        return path

    def arrays(self, batch: Batch) -> dict[str, Any]:
        """The batch as numpy arrays under the ONNX model's input names (views, nothing copied)."""
        return {name: tensor.numpy() for name, tensor in zip(self.names, batch, strict=True)}


@dataclass(frozen=True)
class Peer:
    """A way to serve. `fp32`: it computes in the model's own precision, so its scores are the same scores."""

    name: str
    what: str
    prepare: Callable[[Work], Call]
    packages: tuple[str, ...] = ()
    fp32: bool = False

    def missing(self) -> str | None:
        """Why this peer cannot run here, or None when it can be tried."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the chatter of exporters; what fails still raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------- torch


def _eager(work: Work) -> Call:
    model = work.model()

    def call(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return cast("Tensor", model(*batch))

    return call


def _compile(work: Work) -> Call:
    model = work.model()

    # A function of its own: two copies of a model compiled as modules would share one cache of compiled code
    # and pay for each other's guards.
    @torch.compile(dynamic=True)
    def compiled(*batch: Tensor) -> Tensor:
        return cast("Tensor", model(*batch))

    def call(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return compiled(*batch)

    return call


def _torchao(work: Work) -> Call:
    """torchao `quantize_` with per-row dynamic activations, then torch.compile, as its README shows."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = work.model()
    with _quiet():
        quantize_(model, Int8DynamicActivationInt8WeightConfig())

    @torch.compile(dynamic=True)
    def compiled(*batch: Tensor) -> Tensor:
        return cast("Tensor", model(*batch))

    def call(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return compiled(*batch)

    return call


# ---------------------------------------------------------------- ONNX Runtime


def _onnxruntime_session(work: Work, path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = work.names

    def call(batch: Batch) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return call


def _onnxruntime(work: Work) -> Call:
    return _onnxruntime_session(work, work.onnx_path)


def _onnxruntime_int8(work: Work) -> Call:
    """Static QDQ int8, per channel, of the matrix products.

    Not of every op: `Gather` of a quantised table dequantises the whole table on each call.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([work.arrays(batch) for batch in work.calibration])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    whole, prepared, quantised = (work.folder / f"{step}.onnx" for step in ("whole", "prepared", "int8"))
    with _quiet():
        # The pre-processor fails on weights kept outside the file, so they are put inside first.
        onnx.save(onnx.load(work.onnx_path), whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        )
    return _onnxruntime_session(work, quantised)


# ---------------------------------------------------------------- OpenVINO


def _openvino_model(work: Work) -> Any:
    """The torch model converted directly, rows free: a little faster than by way of ONNX."""
    import openvino

    shapes = [
        openvino.PartialShape([-1 if dim == axis else size for dim, size in enumerate(tensor.shape)])
        for tensor, axis in zip(work.example, work.case.axes.values(), strict=True)
    ]
    with _quiet():
        return openvino.convert_model(work.model(), example_input=work.example, input=shapes)


def _openvino_call(work: Work, model: Any, settings: dict[str, Any]) -> Call:
    import openvino

    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(), **settings},
    )
    request = compiled.create_infer_request()
    output = compiled.output(0)

    def call(batch: Batch) -> Tensor:
        results = request.infer([tensor.numpy() for tensor in batch], share_inputs=True)
        return torch.from_numpy(results[output])

    return call


def _openvino(work: Work) -> Call:
    return _openvino_call(work, _openvino_model(work), {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino_default(work: Work) -> Call:
    return _openvino_call(work, _openvino_model(work), {})


def _openvino_int8(work: Work) -> Call:
    """Post-training int8 by NNCF, then compiled as OpenVINO does by default."""
    with _quiet():
        import nncf

        extra = {"model_type": nncf.ModelType.TRANSFORMER} if work.case.transformer else {}
        quantised = nncf.quantize(
            _openvino_model(work),
            nncf.Dataset(work.calibration, lambda batch: [tensor.numpy() for tensor in batch]),
            subset_size=len(work.calibration),
            **extra,
        )
    return _openvino_call(work, quantised, {})


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("eager", "torch eager, inference_mode", _eager, fp32=True),
        Peer("compile", "torch.compile(dynamic=True)", _compile, fp32=True),
        Peer(
            "onnxruntime",
            "ONNX Runtime fp32, torch.onnx.export(dynamo=True)",
            _onnxruntime,
            ("onnx", "onnxscript", "onnxruntime"),
            True,
        ),
        Peer("openvino", "OpenVINO, f32", _openvino, ("openvino",), True),
        Peer(
            "openvino-default",
            "OpenVINO, its default precision",
            _openvino_default,
            ("openvino",),
        ),
        Peer(
            "onnxruntime-int8",
            "ONNX Runtime static int8, QDQ per channel, of its matrix products; lookups stay fp32",
            _onnxruntime_int8,
            ("onnx", "onnxscript", "onnxruntime"),
        ),
        Peer(
            "openvino-int8",
            "OpenVINO int8 through NNCF",
            _openvino_int8,
            ("openvino", "nncf"),
        ),
        Peer("torchao-int8", "torchao int8 dynamic, then torch.compile", _torchao, ("torchao",)),
    )
}
FP32: tuple[str, ...] = tuple(peer.name for peer in PEERS.values() if peer.fp32)
BF16: tuple[str, ...] = (*FP32, "openvino-default")
