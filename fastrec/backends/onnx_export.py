"""A graph as an ONNX model in memory: free batch sizes, large constants left outside, nothing printed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..errors import BackendError
from ..quiet import quiet
from .base import Translated
from .common import GIB, export_free, failure, tensor_bytes
from .onnx_numbers import with_kept_numbers
from .onnx_ops import standard_translations, translations
from .onnx_standard import in_standard_operators
from .onnx_tables import is_lent

__all__ = ["export_onnx", "in_one_piece", "refuse_large", "standard_model"]

_OUTSIDE = 64 * 1024
_ANY = 1 << 62


def export_onnx(gm: fx.GraphModule, backend: str, *, outside: bool) -> Translated:
    """The graph as an ONNX model whose free sizes are those of the capture.

    With `outside`, constants of 64 KiB and more stay in the graph's own tensors, to be handed to the session
    beside the model; without, all are inside, and 2 GiB is the limit of an ONNX model in one piece.

    Raises `BackendError` when an operator has no ONNX form, a size would be frozen, or the limit is passed.
    """
    if any("embedding_bag" in str(node.target) for node in gm.graph.nodes):
        raise BackendError(
            "embedding_bag becomes a loop over rows in ONNX: leave the lookups to torch (lookups='torch')",
            backend=backend,
        )
    if not outside:
        refuse_large(gm, backend)
    with quiet():
        try:
            program = torch.onnx.export(
                export_free(with_kept_numbers(gm), backend),
                dynamo=True,
                verbose=False,
                custom_translation_table=translations(),
            )
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot be written as ONNX", backend) from error
    assert program is not None
    constants, copied = _take_out(program.model) if outside else ({}, 0)
    proto = program.model_proto
    names = tuple(value.name for value in proto.graph.input)
    expected = sum(node.op == "placeholder" for node in gm.graph.nodes)
    if len(names) != expected:
        raise BackendError(f"the ONNX model has {len(names)} inputs, the graph {expected}", backend=backend)
    data = proto.SerializeToString()
    return Translated(data, names, constants, len(data) + copied)


def standard_model(gm: fx.GraphModule, backend: str, *, everywhere: bool) -> Any:
    """The graph as an `onnx_ir.Model` in standard operators, its free sizes free, its constants in the graph's own tensors.

    What is computed of constants alone is one. Raises `BackendError` when an operator has no ONNX form or a size would be
    frozen.
    """
    gm = in_standard_operators(gm)
    with quiet():
        try:
            from onnxscript import optimizer

            program = torch.onnx.export(
                export_free(with_kept_numbers(gm), backend),
                dynamo=True,
                verbose=False,
                custom_translation_table=standard_translations(everywhere=everywhere),
            )
            assert program is not None
            model = program.model
            optimizer.fold_constants(model, input_size_limit=_ANY, output_size_limit=_ANY)
            optimizer.remove_unused_nodes(model)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot be written as ONNX", backend) from error
    return model


def refuse_large(gm: fx.GraphModule, backend: str) -> None:
    """Raises `BackendError` for a graph whose constants do not fit an ONNX model in one piece."""
    size = tensor_bytes([*gm.parameters(), *gm.buffers()])
    if size > 2 * GIB - 2**20:
        raise BackendError(
            f"constants take {size / GIB:.1f} GiB, an ONNX model in one piece holds 2: leave the lookups to torch "
            "(lookups='torch')",
            backend=backend,
        )


def in_one_piece(model: Translated) -> bytes:
    """The model with the constants it expects from outside written into it."""
    if not model.constants:
        return model.proto
    import onnx

    made = onnx.ModelProto.FromString(model.proto)
    for held in made.graph.initializer:
        if held.name in model.constants:
            held.ClearField("external_data")
            held.ClearField("data_location")
            # bfloat16 and the like have no numpy type: their bytes are what counts.
            held.raw_data = model.constants[held.name].contiguous().view(torch.uint8).numpy().tobytes()
    whole: bytes = made.SerializeToString()
    return whole


def _take_out(model: object) -> tuple[dict[str, Tensor], int]:
    """Replace large initializers of an onnx_ir model by references.

    Gives the tensors they refer to, and the bytes of those that are no tables to be lent.
    """
    import onnx_ir

    assert isinstance(model, onnx_ir.Model)
    taken: dict[str, Tensor] = {}
    copied = 0
    for name, value in model.graph.initializers.items():
        inside = value.const_value
        if inside is None or inside.nbytes < _OUTSIDE:
            continue
        raw = inside.raw
        tensor = raw.detach() if isinstance(raw, Tensor) else torch.from_numpy(inside.numpy().copy())
        taken[name] = tensor.contiguous()
        uses = ((user.op_type, place) for user, place in value.uses())
        copied += 0 if is_lent(uses, inside.nbytes) else inside.nbytes
        value.const_value = onnx_ir.ExternalTensor(
            "outside", 0, inside.nbytes, inside.dtype, shape=onnx_ir.Shape(tuple(tensor.shape)), name=name
        )
    return taken, copied
