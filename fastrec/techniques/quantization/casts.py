"""Linear maps with operands rounded to bfloat16."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...errors import TechniqueError
from ...graph import VIEWS, add_constant, constant, emit, evaluate, is_call, operator_name, sweep, value
from ...program import Program
from ..base import Change, Skip
from ..traffic import batches_of
from .calibration import inputs_of
from .layers import bias_of, linear_maps, named
from .sensitivity import moved_by
from .sites import OnLayers

__all__ = ["CastLinears"]

aten = torch.ops.aten

# What multiplies bfloat16 faster than float32: on x86, on Arm.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
# A map further off than this is no map.
_WORST = 0.5
# What keeps the order of scores, or makes ties of ties.
_ORDERLY = frozenset(("relu", "sigmoid", "tanh", "softmax", "log_softmax"))


@dataclass(frozen=True)
class CastLinears(OnLayers):
    """Compute linear maps with operands rounded to bfloat16, adding up in float32.

        y = W x + b    ~    round(sum_i round(W_oi) round(x_i) + round(b_o))        8 bits of mantissa, halves to even

    There is nothing to calibrate, and no row's answer depends on another row. Applies to maps (..., I) -> (..., O) by
    a constant float32 weight of at least `least` elements (O I), on processors that multiply bfloat16: twice as fast
    as float32 there, from some 100 rows on for maps at the limit. The sums are rounded as well, which costs nothing
    between maps with no more than ReLU and moves between them: the next would round them. A map whose result is the
    model's answer would tie scores, and is taken only where `only` names it. `only` names the sites to take (None: all)
    and `without` those to leave; a site is the name of the graph's node.

    Each change says how far the layer's output is off on the calibration, or on the example batch, `|y' - y| / |y|`; a
    layer more than half off is left as it is. Raises `InputError` for settings of another kind and for a site in `only`
    that the graph does not have, `TechniqueError` for a model that was not captured. Cost: a run of each calibration
    batch and a product per layer; weights take half.

    Source: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training" (2019).

    Example:
        >>> CastLinears().exact, CastLinears(only=("linear_3",)).only
        (False, ('linear_3',))
    """

    name: ClassVar[str] = "cast_linears"
    kind: ClassVar[str] = "linear map"
    rule: ClassVar[str] = "cast linears"
    numbers: ClassVar[str] = "bfloat16"
    # Maps of so many weights gain from some 32 rows on.
    large: ClassVar[int] = 65536
    bytes_per_weight: ClassVar[int] = 2

    least: int = 16384

    def missing(self) -> str:
        """Why nothing is to be gained on this machine, or nothing."""
        able = torch.cpu.get_capabilities()
        if not any(able.get(name) for name in _INSTRUCTIONS):
            return "this processor does not multiply bfloat16 faster than float32"
        built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch gives it no types
        return "" if built else "this torch has no kernels for bfloat16 (oneDNN)"

    def candidates(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Linear maps."""
        return linear_maps(gm)

    def take(
        self, program: Program, gm: fx.GraphModule, nodes: list[fx.Node]
    ) -> tuple[tuple[Change, ...], list[Skip]]:
        """Rounds what these maps multiply."""
        skips: list[Skip] = []
        layers: dict[fx.Node, float] = {}
        sources: list[Any] = [node.args[0] for node in nodes]
        seen = inputs_of(gm, sources, batches_of(program))
        for node, source in zip(nodes, sources, strict=True):
            weight = constant(gm, node.args[1])
            assert weight is not None
            low, reason = weight.bfloat16(), ""
            rows = seen[source]
            rows = rows[rows.isfinite().all(1)]
            off = _error(rows, weight, low)
            if self.only is None and _is_answer(node):
                reason = "its result is the model's answer, and 8 bits would tie scores: only=(...) takes it"
            elif not bool(low.isfinite().all()):
                reason = "its weights are not all finite in bfloat16"
            elif not len(rows):
                reason = "no row of numbers in the calibration reaches it"
            elif not off <= _WORST:
                reason = f"bfloat16 would put its output {off:.0%} off"
            if reason:
                skips.append(Skip(self.rule, node.name, reason))
            else:
                layers[node] = off
        added = _cast(gm, list(layers))
        changes = tuple(
            Change(
                self.rule,
                node.name,
                f"{value(node.args[1]).numel():,} weights, output {off:.1e} off",  # type: ignore[arg-type]  # an argument of a node is of any type
                added[node.name],
            )
            for node, off in layers.items()
        )
        return changes, skips

    def sensitivities(self, program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
        """How far the answer moves with each map alone in bfloat16."""
        if not isinstance(program.model, fx.GraphModule):
            raise TechniqueError("looks at captured graphs: capture the program first", technique=self.name)
        gm = named(program.model)
        names = [node.name for node in linear_maps(gm) if sites is None or node.name in sites]
        return moved_by(gm, batches_of(program), {name: partial(_cast_one, name) for name in names})


def _error(x: Tensor, weight: Tensor, low: Tensor) -> float:
    """How far off the products are, relative to their size, on rows (n, I)."""
    right = functional.linear(x, weight)
    off = float((functional.linear(x.bfloat16(), low).float() - right).norm())
    return off / float(right.norm()) if off else 0.0


def _is_answer(node: fx.Node) -> bool:
    """Whether the node's result is an output, moved or through functions that keep its order."""
    left, seen = [node], set()
    while left:
        one = left.pop()
        for user in one.users:
            if user.op == "output":
                return True
            if user not in seen and operator_name(user) in VIEWS | _ORDERLY:
                seen.add(user)
                left.append(user)
    return False


def _cast_one(name: str, gm: fx.GraphModule) -> None:
    _cast(gm, [node for node in gm.graph.nodes if node.name == name])


def _cast(gm: fx.GraphModule, nodes: list[fx.Node]) -> dict[str, int]:
    """Rounds what these maps, in the graph's order, multiply; gives the bytes of the constants each adds.

    Maps of one weight keep one. Where no more than ReLU and moves stand between two maps, numbers stay rounded.
    """
    made: dict[fx.Node, fx.Node | None] = {}
    added: dict[str, int] = {}
    for node in nodes:
        added[node.name] = 0
        held: Any = node.args[1]
        bias: Any = bias_of(node)
        for one in (held, bias):
            tensor = constant(gm, one)
            if tensor is not None and one not in made:
                low = tensor.bfloat16()
                made[one] = add_constant(gm, f"{one.target}_bfloat16", low)
                added[node.name] += low.nbytes
        with gm.graph.inserting_before(node):
            parts = [_rounded(gm, one, made) for one in (node.args[0], held, bias) if one is not None]
            node.args = tuple(parts)
            node.kwargs = {}
            node.meta["val"] = evaluate(gm, node)
        with gm.graph.inserting_after(node):
            back = emit(gm, aten.to.dtype, (node, torch.float32))
        node.replace_all_uses_with(back, delete_user_cb=partial(operator.is_not, back))
    sweep(gm)
    return added


def _rounded(gm: fx.GraphModule, x: Any, made: dict[fx.Node, fx.Node | None]) -> fx.Node:
    """A float32 value in bfloat16, at the insertion point, or as it was made for an earlier reader."""
    found = made.get(x) or _kept(gm, x, made) or emit(gm, aten.to.dtype, (x, torch.bfloat16))
    made[x] = found
    return found


def _kept(gm: fx.GraphModule, x: Any, made: dict[fx.Node, fx.Node | None]) -> fx.Node | None:
    """The value, where it was in bfloat16 before it was made float32, moved, or cut at zero: rounding would change nothing."""
    if made.get(x) is not None:
        return made[x]
    if is_call(x, aten.to.dtype):
        source = x.args[0]
        return source if value(source).dtype is torch.bfloat16 and value(x).dtype is torch.float32 else None
    if not (is_call(x, aten.relu.default) or operator_name(x) in VIEWS):
        return None
    if not isinstance(x.meta["val"], Tensor) or not isinstance(x.args[0], fx.Node):
        return None
    source = _kept(gm, x.args[0], made)
    if source is not None:
        made[x] = emit(gm, x.target, (source, *x.args[1:]), x.kwargs)
    return made.get(x)
