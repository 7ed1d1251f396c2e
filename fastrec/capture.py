"""Capture: a model's data flow as a graph that runs at any number of rows.

torch.export reads the model, by running it and, where that fails, by reading its bytecode. What it found is then
checked against the model itself at several batch sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .earlier import mark_originals
from .errors import CaptureError
from .graph import constant, free_sizes, is_random, is_written, normalise, operator_name
from .inputs import flat_layout
from .places import line_of, place_of
from .program import Program
from .quiet import quiet, reason_of
from .rows import take_rows
from .subgraphs import past
from .trees import collect

__all__ = ["capture"]

_MUST_RUN = (2, 3, 33)
_MAY_DIFFER = (0, 1)
# Of every size that models have, few are primes, and few of them as large as the last.
_PRIMES = tuple(n for n in range(7, 2000) if all(n % k for k in range(2, int(n**0.5) + 1)))


def capture(program: Program) -> Program:
    """The program's data flow: its model is an `fx.GraphModule` over flat tensors, its batch a tuple of them.

    The graph computes in evaluation mode, without gradients. It is checked against the model at several numbers
    of rows; those (0 or 1) at which it differs, though the model runs, are left to the model: `layout.exempt`.

    Raises `CaptureError` with each reader's reason where the flow cannot be recorded, depends on values, draws random numbers, or
    writes to the model. Cost: seconds; the tensors are shared.
    """
    opaque = program.layout.opaque()
    if opaque:
        raise CaptureError(f"holds objects that are neither tensors nor plain values: {'; '.join(opaque)}")
    tensors = program.flat(program.batch)
    example = _resized(program, tensors)
    reasons = []
    for strict in (False, True):
        try:
            gm, unchecked = _export(program, example, strict)
            _check_effects(gm)
            _check_free(program, gm)
            exempt = _check_answers(program, gm, tensors)
            free_sizes(gm, example, [feature.growing for feature in program.layout.features])
        except CaptureError as error:
            reasons.append(str(error))
        except Exception as error:  # noqa: BLE001 - the exporter raises anything; its reason is kept
            line = line_of(error)
            reasons.append(f"{reason_of(error)} (at {line})" if line else reason_of(error))
        else:
            mark_originals(gm)
            layout = replace(flat_layout(program.layout, len(_outputs(gm))), exempt=exempt)
            return replace(
                program, model=gm, batch=tuple(tensors), layout=layout, entry="forward", unchecked=unchecked
            )
    raise CaptureError("; ".join(dict.fromkeys(reasons)))


class _Flat(nn.Module):
    """The model as a function of flat tensors to a tuple of them."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        # A draft of its own: exporting leaves traces on modules that keep lists of their weights.
        self.model = program.draft().eval()
        self.program = program.with_model(self.model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        layout = self.program.layout
        counts = [
            tensor.shape[feature.axis]
            for feature, tensor in zip(layout.features, tensors, strict=True)
            if feature.role == "rows" and feature.axis is not None
        ]
        # One symbol stands for the number of rows, whichever feature it is read from.
        for count in counts[1:]:
            torch._check(count == counts[0])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        args, kwargs = layout.arguments(tensors)
        flat: list[Tensor] = []
        collect(layout.outputs, self.program.function(*args, **kwargs), "output", flat)
        return tuple(flat)


def _resized(program: Program, tensors: list[Tensor]) -> list[Tensor]:
    """The example with a number of rows that is no other size of the batch or the model.

    The exporter takes sizes that are equal in the example for equal always.
    """
    rows = program.layout.rows
    if rows is None:
        return tensors
    features = program.layout.features
    taken = {size for tensor in program.model.state_dict().values() for size in tensor.shape}
    for feature, tensor in zip(features, tensors, strict=True):
        taken.update(size for axis, size in enumerate(tensor.shape) if axis != feature.growing)
    primes = iter(prime for prime in _PRIMES if prime not in taken)
    free = next(primes)
    example = take_rows(features, tensors, torch.arange(free) % rows)
    # Exporting reads no values, so jagged ones may be any number of anything.
    totals = {feature.group: next(primes) for feature in features if feature.role == "values"}
    return [
        tensor.new_zeros((totals[feature.group], *tensor.shape[1:])) if feature.role == "values" else tensor
        for feature, tensor in zip(features, example, strict=True)
    ]


def _export(program: Program, example: list[Tensor], strict: bool) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph, and where the model checks values, which the graph does not."""
    auto = torch.export.Dim.AUTO
    sizes = tuple({f.growing: auto} if f.growing is not None else {} for f in program.layout.features)
    with quiet(), torch.no_grad():
        exported = torch.export.export(_Flat(program), tuple(example), dynamic_shapes=(sizes,), strict=strict)
        if any(is_written(node) for node in exported.graph.nodes):
            # The same flow without writes in place, every operator otherwise kept whole.
            exported = exported.run_decompositions({})
        gm = exported.module(check_guards=False)
        assert isinstance(gm, fx.GraphModule)
        checks = filter(_checks_values, gm.graph.nodes)
        unchecked = dict.fromkeys(place_of(node) or str(node.target) for node in checks)
        return normalise(gm), tuple(unchecked)


def _checks_values(node: fx.Node) -> bool:
    """Whether the caller asserts something of what tensors hold; what the exporter asserts is of their sizes."""
    name = operator_name(node)
    return name == "_assert_async" or (
        name == "_assert_scalar" and any(operator_name(one) == "item" for one in past([node]))
    )


def _check_effects(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if is_random(node):
            raise CaptureError(f"draws random numbers as it is called ({_called(node)})")
        if is_written(node) and node.args and constant(gm, node.args[0]) is not None:
            raise CaptureError(
                f"writes to its own tensor {node.args[0].target!r} on each call ({_called(node)})"
            )


def _called(node: fx.Node) -> str:
    """The operator that a node calls, and where."""
    return " at ".join(filter(None, (str(node.target), place_of(node))))


def _check_free(program: Program, gm: fx.GraphModule) -> None:
    """That the number of rows was not frozen."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for feature, node in zip(program.layout.features, inputs, strict=True):
        axis = feature.growing
        if axis is not None and not isinstance(node.meta["val"].shape[axis], torch.SymInt):
            raise CaptureError(
                f"the number of rows of {feature.name!r} would be fixed: the flow depends on it"
            )


def _check_answers(program: Program, gm: fx.GraphModule, tensors: list[Tensor]) -> tuple[int, ...]:
    """Compares graph and model; gives the numbers of rows at which they may not be exchanged."""
    private = program.private()
    rows = program.layout.rows
    if rows is None:
        _compare(private, gm, tensors)
        return ()
    for count in _MUST_RUN:
        _compare(private, gm, take_rows(program.layout.features, tensors, torch.arange(count) % rows))
    exempt = []
    for count in _MAY_DIFFER:
        try:
            _compare(private, gm, take_rows(program.layout.features, tensors, torch.arange(count) % rows))
        except Exception:  # noqa: BLE001 - whatever it is, the model itself serves these
            exempt.append(count)
    return tuple(exempt)


def _compare(private: Program, gm: fx.GraphModule, tensors: list[Tensor]) -> None:
    expected = private.answers(tensors)
    with torch.no_grad():
        got = gm(*tensors)
    for index, (old, new) in enumerate(zip(expected, got, strict=True)):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise CaptureError(
                f"output {index} became {tuple(new.shape)} {new.dtype}, expected {tuple(old.shape)} {old.dtype}"
            )
        if not _alike(old, new):
            raise CaptureError(
                f"output {index} differs from the model's: the flow depends on values or on chance"
            )


def _alike(old: Tensor, new: Tensor) -> bool:
    if not old.is_floating_point():
        return torch.equal(old, new)
    finite = old[old.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(new, old, rtol=1e-4, atol=1e-5 * scale + 1e-30, equal_nan=True)


def _outputs(gm: fx.GraphModule) -> tuple[Any, ...]:
    outputs = gm.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    return outputs
