"""The reference operators in ONNX: which nodes they become.

`MatMulIntegerToFloat` is ONNX Runtime's own: a product of codes with exact sums, scaled and with its bias in one pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..ops.convolutions import INT8_CONVOLUTION
from ..ops.linears import INT8_LINEAR
from .onnx_codes import number, unsigned
from .onnx_convolutions import int8_convolution, unsigned_convolution

__all__ = ["saturates", "standard_translations", "translations"]

_DOMAIN = "com.microsoft"


def translations() -> dict[Any, Callable[..., Any]]:
    """How `torch.onnx.export` writes each reference operator (its `custom_translation_table`)."""
    return {INT8_LINEAR: _int8_linear, INT8_CONVOLUTION: int8_convolution}


def standard_translations(*, everywhere: bool) -> dict[Any, Callable[..., Any]]:
    """The same in operators of ONNX alone; `everywhere` has weights as unsigned codes, whose products are right on every processor."""
    linear = _unsigned_linear if everywhere or saturates() else _signed_linear
    return {INT8_LINEAR: linear, INT8_CONVOLUTION: unsigned_convolution if everywhere else int8_convolution}


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's product of unsigned by signed codes is wrong on this processor; tried once.

    x86 without VNNI adds pairs of products in 16 bits, which hold 32,767: 255 * 127 + 255 * 127 does not fit. Products
    of unsigned by unsigned codes are right everywhere, and take twice as long where the others are right.
    """
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    # Kernels differ by the number of rows.
    inner, rows = 64, (1, 2, 16)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["A", "B"], ["Y"])],
        "saturates",
        [helper.make_tensor_value_info("A", TensorProto.UINT8, ["N", inner])],
        [helper.make_tensor_value_info("Y", TensorProto.INT32, ["N", 16])],
        [numpy_helper.from_array(numpy.full((inner, 16), 127, numpy.int8), "B")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"A": numpy.full((n, inner), 255, numpy.uint8)})[0] for n in rows]
    return any(bool((answer != 255 * 127 * inner).any()) for answer in answers)


def _int8_linear(
    x: Any, weight: Any, weight_scale: Any, x_scale: float, x_zero: int, bias: Any = None
) -> Any:
    """Whatever is done to the weight alone is done once, as the session is loaded."""
    import numpy
    from onnxscript import opset18

    op: Any = opset18
    scale, zero = number(numpy.float32(x_scale)), number(numpy.uint8(x_zero))
    codes, turned, weight_zero = op.QuantizeLinear(x, scale, zero), op.Transpose(weight, perm=[1, 0]), None
    if saturates():
        turned, weight_zero = unsigned(turned)
    return _product_of_codes()(codes, turned, scale, weight_scale, zero, weight_zero, bias)


def _unsigned_linear(
    x: Any, weight: Any, weight_scale: Any, x_scale: float, x_zero: int, bias: Any = None
) -> Any:
    """As below, of unsigned codes."""
    from onnxscript import opset18

    op: Any = opset18
    turned, even = unsigned(op.Transpose(weight, perm=[1, 0]))
    return _scaled_sums(x, turned, even, weight_scale, x_scale, x_zero, bias)


def _signed_linear(
    x: Any, weight: Any, weight_scale: Any, x_scale: float, x_zero: int, bias: Any = None
) -> Any:
    """`MatMulInteger` gives the exact sums, which are scaled in floats."""
    import numpy
    from onnxscript import opset18

    op: Any = opset18
    turned, even = op.Transpose(weight, perm=[1, 0]), number(numpy.int8(0))
    return _scaled_sums(x, turned, even, weight_scale, x_scale, x_zero, bias)


def _scaled_sums(
    x: Any, turned: Any, even: Any, weight_scale: Any, x_scale: float, x_zero: int, bias: Any
) -> Any:
    """(q(x) - zero) (w - even), in integers, times both scales, and the bias."""
    import numpy
    import onnx_ir
    from onnxscript import opset18

    op: Any = opset18
    scale, zero = number(numpy.float32(x_scale)), number(numpy.uint8(x_zero))
    sums = op.MatMulInteger(op.QuantizeLinear(x, scale, zero), turned, zero, even)
    y = op.Mul(op.Cast(sums, to=onnx_ir.DataType.FLOAT), op.Mul(weight_scale, scale))
    return y if bias is None else op.Add(y, bias)


@functools.cache
def _product_of_codes() -> Any:
    """`MatMulIntegerToFloat`, which the ONNX package has no schema of, as an operator for translations."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    given, perhaps = OpSchema.FormalParameterOption.Single, OpSchema.FormalParameterOption.Optional

    def parameter(name: str, kind: str, option: Any = given) -> Any:
        return OpSchema.FormalParameter(name, kind, param_option=option)

    floats = "tensor(float)"
    schema = OpSchema(
        "MatMulIntegerToFloat",
        _DOMAIN,
        1,
        inputs=[
            parameter("A", "T1"),
            parameter("B", "T2"),
            parameter("a_scale", floats),
            parameter("b_scale", floats),
            parameter("a_zero_point", "T1", perhaps),
            parameter("b_zero_point", "T2", perhaps),
            parameter("bias", floats, perhaps),
        ],
        outputs=[parameter("Y", floats)],
        type_constraints=[("T1", ["tensor(uint8)"], ""), ("T2", ["tensor(int8)", "tensor(uint8)"], "")],
    )
    return Op(Opset(_DOMAIN, 1), schema.name, schema)
