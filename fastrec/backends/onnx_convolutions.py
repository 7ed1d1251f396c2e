"""A convolution in 8-bit integers as ONNX has it: `QLinearConv`, codes in and codes out.

ONNX Runtime drops a pair of decoding and coding by the same range, so codes go from one convolution to the next, with
channels last; `ConvInteger`, which gives the sums themselves, takes longer there than floats do.
"""

from __future__ import annotations

import functools
from typing import Any

from .onnx_codes import number, unsigned

__all__ = ["int8_convolution", "saturates", "unsigned_convolution"]


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's convolution of unsigned by signed codes is wrong on this processor; tried once.

    As for matrix products: x86 without VNNI adds pairs of products in 16 bits, which do not hold 255 * 127 + 255 * 127.
    """
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    channels, size, step = 64, 4, numpy.float32(2.0**14)
    one, none = numpy.float32(1), numpy.uint8(0)
    constants = {
        "one": one, "none": none, "step": step, "even": numpy.int8(0),
        "W": numpy.full((16, channels, 1, 1), 127, numpy.int8),
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["X", "one", "none", "W", "one", "even", "step", "none"], ["Y"])],
        "saturates",
        [helper.make_tensor_value_info("X", TensorProto.UINT8, ["N", channels, size, size])],
        [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["N", 16, size, size])],
        [numpy_helper.from_array(numpy.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    right = round(255 * 127 * channels / float(step))
    answers = [
        session.run(None, {"X": numpy.full((n, channels, size, size), 255, numpy.uint8)})[0] for n in (1, 2)
    ]
    return any(bool((answer != right).any()) for answer in answers)


def int8_convolution(
    x: Any, weight: Any, weight_scale: Any, bias: Any, x_scale: float, x_zero: int, y_scale: float, y_zero: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Any:  # fmt: skip
    """What `torch.onnx.export` writes for the reference operator; what is done to the weight alone is done once."""
    return _convolution(
        x, weight, weight_scale, bias, (x_scale, x_zero), (y_scale, y_zero),
        (stride, padding, dilation, groups), saturates(),
    )  # fmt: skip


def unsigned_convolution(
    x: Any, weight: Any, weight_scale: Any, bias: Any, x_scale: float, x_zero: int, y_scale: float, y_zero: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Any:  # fmt: skip
    """The same with unsigned weights, which are right on every processor."""
    return _convolution(
        x, weight, weight_scale, bias, (x_scale, x_zero), (y_scale, y_zero),
        (stride, padding, dilation, groups), True,
    )  # fmt: skip


def _convolution(
    x: Any, weight: Any, weight_scale: Any, bias: Any, into: tuple[float, int], out: tuple[float, int],
    moves: tuple[list[int], list[int], list[int], int], shifted: bool,
) -> Any:  # fmt: skip
    import numpy
    from onnxscript import opset18

    op: Any = opset18
    given = number(numpy.float32(into[0])), number(numpy.uint8(into[1]))
    output = number(numpy.float32(out[0])), number(numpy.uint8(out[1]))
    even = number(numpy.int8(0))
    if shifted:
        weight, even = unsigned(weight)
    stride, padding, dilation, groups = moves
    named = {
        "strides": list(stride),
        "pads": list(padding),
        "dilations": list(dilation),
        "group": groups,
    }
    codes = _codes_of(x, *into) or op.QuantizeLinear(x, *given)
    return op.DequantizeLinear(
        op.QLinearConv(codes, *given, weight, weight_scale, even, *output, bias, **named), *output
    )


def _codes_of(x: Any, scale: float, zero: int) -> Any:
    """The codes that x was decoded from by this range, which would come back as they were; None where there are none."""
    made = x.producer()
    if made is None or made.op_type != "DequantizeLinear":
        return None
    codes, *by = made.inputs
    held = [number.producer().attributes["value"].value.numpy() for number in by]
    return codes if [held[0].item(), held[1].item()] == [scale, zero] else None
