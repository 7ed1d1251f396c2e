"""What translations of integer operators share: numbers as constants of the model, and weights as unsigned codes."""

from __future__ import annotations

from typing import Any

__all__ = ["number", "unsigned"]

# What makes a weight's codes unsigned.
_SHIFT = 128


def number(value: Any) -> Any:
    """A numpy number as a constant."""
    import onnx_ir
    from onnxscript import opset18

    op: Any = opset18
    return op.Constant(value=onnx_ir.tensor(value))


def unsigned(codes: Any) -> tuple[Any, Any]:
    """Signed codes shifted into unsigned ones, and the zero of those; of a constant it is done once, as it is loaded."""
    import numpy
    import onnx_ir
    from onnxscript import opset18

    op: Any = opset18
    wide = op.Add(op.Cast(codes, to=onnx_ir.DataType.INT32), number(numpy.int32(_SHIFT)))
    return op.Cast(wide, to=onnx_ir.DataType.UINT8), number(numpy.uint8(_SHIFT))
