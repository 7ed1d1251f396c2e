"""Products of fields in pairs, summed: those with a candidate's field are one, whatever the request's are (A4).

    y_h  =  sum_(a, c) R_h[a, c] <v_a, v_c>                    FM, FwFM, pairwise loops; all pairs, or some
         =  sum_a <v_a, sum_c R_h[a, c] u_c>                   v_a (N, d) the candidate's, u_c (1, d) the request's
          + sum_(c, c') R_h[c, c'] <u_c, u_c'>                 once for all candidates
          + sum_(a, a') R_h[a, a'] <v_a, v_a'>                 as before

For each candidate |I| |U| products become |I|: one linear map of the candidate's fields side by side, whose weights
are the request's, and whose bias are the products of the request's fields. However the model's author wrote them: in
loops, by index tensors, as a matrix of all pairs, with weights or without (`Forms` reads them), summed by `sum`, `add`
or a linear map. New weights are computed in float64.

When it does not apply: to vectors whose products others read; where it does not take fewer multiply-adds for each
candidate, as with many outputs; to a graph that writes in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, is_call, operator_name, value
from ..base import Change
from .forms import Form, Forms, Vector, combined
from .join import take
from .joins import Joins
from .purity import writes
from .terms import joined, opened, summands, weights

__all__ = ["factor_products"]

aten = torch.ops.aten
_WORTH = 0.8
_PAIRED = ("bmm", "matmul", "einsum")


def factor_products(gm: fx.GraphModule) -> list[Change]:
    """Factors sums of products; edits `gm` in place. Adds weights of pairs of fields."""
    nodes = list(gm.graph.nodes)
    if writes(gm) or not any(_is_once(node) for node in nodes):
        return []
    forms = Forms(gm, Joins(gm, products=False))
    for node in nodes:
        forms.read(node)
    gone: set[fx.Node] = set()
    changes = []
    for node in reversed(nodes):
        if node.op == "call_function" and gone.issuperset(node.users):
            gone.add(node)
            continue
        found = _read(gm, forms, node)
        if found is None:
            continue
        of = _Blocks(found.form)
        inside = _inside(forms, node, found)
        if inside is None or not of.across.any():
            continue
        outputs, width = found.form.coefficients.shape[1], int(value(of.mine[0].block).shape[-1])
        before = sum(_multiply_adds(inner, width) for inner in inside) + found.multiply_adds
        met, pairs = int(of.across.any(2).any(0).sum()), bool(of.of_candidate.any()) * len(of.theirs) ** 2
        after = outputs * met * width + pairs * (width + outputs)
        if after <= _WORTH * before:
            added = _replace(gm, node, found, of)
            gone |= {node, *inside}
            detail = f"{before} multiply-adds for each candidate become {after}"
            changes.append(Change("factor products", node.name, detail, added))
    return changes


def _is_once(node: fx.Node) -> bool:
    """Whether the node is the request's: a tensor of one row, and no constant."""
    found = node.meta.get("val")
    if node.op == "get_attr" or not isinstance(found, Tensor) or found.ndim < 2:
        return False
    return isinstance(found.shape[0], int) and found.shape[0] == 1


@dataclass
class _Sum:
    """A quadratic form of h outputs, what is added to it, and its bias; multiply-adds of the node itself."""

    form: Form
    read: list[fx.Node]
    rest: list[tuple[fx.Node, int]]
    beside: list[tuple[fx.Node, Tensor]]
    bias: Tensor | None = None
    multiply_adds: int = 0


class _Blocks:
    """The coefficients of a form by whose vectors they meet: (h, |I|, |U|), (h, |U|, |U|), (h, |I|, |I|)."""

    def __init__(self, form: Form) -> None:
        vectors = sorted(
            {vector for key in form.keys for vector in key}, key=lambda v: (v.block.name, v.place)
        )
        self.mine = [vector for vector in vectors if vector.once]
        self.theirs = [vector for vector in vectors if not vector.once]
        place = {v: k for part in (self.mine, self.theirs) for k, v in enumerate(part)}
        outputs, many, few = form.coefficients.shape[1], len(self.theirs), len(self.mine)
        self.across = torch.zeros(outputs, many, few, dtype=torch.float64)
        self.of_request = torch.zeros(outputs, few, few, dtype=torch.float64)
        self.of_candidate = torch.zeros(outputs, many, many, dtype=torch.float64)
        for (a, b), c in zip(form.keys, form.coefficients, strict=True):
            if a.once != b.once:
                a, b = (b, a) if a.once else (a, b)
                block = self.across
            else:
                block = self.of_request if a.once else self.of_candidate
            block[:, place[a], place[b]] += c


def _read(gm: fx.GraphModule, forms: Forms, node: fx.Node) -> _Sum | None:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    shape = value(node).shape
    if (
        not len(shape)
        or not isinstance(shape[0], torch.SymInt)
        or any(not isinstance(n, int) for n in shape[1:])
    ):
        return None
    if is_call(node, aten.linear.default):
        return _linear(gm, forms, node)
    if operator_name(node) not in ("add", "sub", "sum", "mean", "mul", "einsum"):
        return None
    found, rest = [], []
    for leaf, sign in summands(node):
        form = forms.read(leaf)
        if form is not None and form.kind == "dot":
            c = sign * form.coefficients
            found.append((leaf, Form("dot", form.keys, c.reshape(len(c), -1))))
        else:
            rest.append((leaf, sign))
    return _Sum(_total([form for _, form in found]), [leaf for leaf, _ in found], rest, []) if found else None


def _linear(gm: fx.GraphModule, forms: Forms, node: fx.Node) -> _Sum | None:
    held, x = weights(gm, node), node.args[0]
    if held is None or not isinstance(x, fx.Node) or value(x).ndim != 2:
        return None
    weight, bias = held
    found, beside, terms = [], [], opened(x, weight.double())
    for leaf, columns in terms:
        form = forms.read(leaf)
        if form is not None and form.kind == "dot":
            found.append((leaf, Form("dot", form.keys, form.coefficients @ columns.t()), columns.numel()))
        else:
            beside.append((leaf, columns))
    if not found:
        return None
    total = _total([form for _, form, _ in found])
    return _Sum(total, [leaf for leaf, *_ in found], [], beside, bias, sum(n for *_, n in found))


def _total(forms: list[Form]) -> Form:
    keys, coefficients = combined(forms)
    return Form("dot", keys, torch.stack(coefficients).sum(0))


def _inside(forms: Forms, node: fx.Node, found: _Sum) -> set[fx.Node] | None:
    """The nodes that make the products, for this sum alone; None where others read them."""
    made: set[fx.Node] = set()
    fields: set[fx.Node] = set()
    pending = list(found.read)
    while pending:
        inner = pending.pop()
        form = forms.read(inner)
        if form is None or inner in made:
            continue
        if form.kind == "field":
            fields.add(inner)
        else:
            made.add(inner)
            pending += inner.all_input_nodes
    if not all(_leads(user, made, node) for inner in made if inner is not node for user in inner.users):
        return None
    return made | {field for field in fields if made.issuperset(field.users)}


def _leads(user: fx.Node, made: set[fx.Node], node: fx.Node) -> bool:
    """Whether a reader is one of these, or the node, or is read on the way to the node alone."""
    while user not in made and user is not node:
        if len(user.users) != 1:
            return False
        user = next(iter(user.users))
    return True


def _multiply_adds(node: fx.Node, width: int) -> int:
    """Those of one node that multiplies vectors, for each candidate."""
    name, shape = operator_name(node), value(node).shape
    if isinstance(shape[0], int) or name not in ("mul", "pow", *_PAIRED):
        return 0
    each = math.prod(int(n) for n in shape[1:])
    if name == "einsum":
        equation, operands = node.args
        terms = str(equation).replace(" ", "").split("->")[0].split(",")
        sizes = {
            letter: size
            for term, arg in zip(terms, operands, strict=True)
            for letter, size in zip(term, value(arg).shape, strict=True)
        }
        return math.prod(size for size in sizes.values() if isinstance(size, int))
    if name == "matmul" and int(shape[-1]) == width:  # fields weighted by a matrix
        return each * int(value(node.args[0]).shape[-1])
    return each * (width if name in _PAIRED else 1)


def _replace(gm: fx.GraphModule, node: fx.Node, found: _Sum, of: _Blocks) -> int:
    """The sum, factored; the bytes of what was added."""
    dtype, outputs = value(node).dtype, found.form.coefficients.shape[1]
    width = int(value(of.mine[0].block).shape[-1])
    few, many = len(of.mine), len(of.theirs)
    added = 0

    def held(tensor: Tensor) -> fx.Node:
        nonlocal added
        added += tensor.numel() * dtype.itemsize
        return add_constant(gm, f"{node.name}_pairs", tensor.to(dtype))

    def weighted(coefficients: Tensor, matrix: fx.Node) -> fx.Node:
        """Sums of the request's vectors: coefficients (h, k, |U|) as (h, k d)."""
        sums = emit(gm, aten.matmul.default, (held(coefficients.reshape(-1, few)), matrix))
        return emit(gm, aten.reshape.default, (sums, [outputs, coefficients.shape[1] * width]))

    with gm.graph.inserting_before(node):
        u, v = _side_by_side(gm, of.mine), _side_by_side(gm, of.theirs)
        matrix = emit(gm, aten.reshape.default, (u, [few, width]))
        bias = None if found.bias is None else held(found.bias)
        if of.of_request.any():
            args = (u, weighted(of.of_request, matrix))
            row = emit(gm, aten.linear.default, args if bias is None else (*args, bias))
            bias = emit(gm, aten.reshape.default, (row, [outputs]))
        args = (v, weighted(of.across, matrix))
        total = emit(gm, aten.linear.default, args if bias is None else (*args, bias))
        if of.of_candidate.any():
            block = emit(gm, aten.reshape.default, (v, [-1, many, width]))
            products = emit(gm, aten.bmm.default, (block, emit(gm, aten.transpose.int, (block, 1, 2))))
            flat = emit(gm, aten.reshape.default, (products, [-1, many * many]))
            pairs = emit(gm, aten.linear.default, (flat, held(of.of_candidate.reshape(outputs, -1))))
            total = emit(gm, aten.add.Tensor, (total, pairs))
        if found.beside:
            columns = torch.cat([mine for _, mine in found.beside], 1)
            x = joined(gm, [leaf for leaf, _ in found.beside])
            total = emit(gm, aten.add.Tensor, (total, emit(gm, aten.linear.default, (x, held(columns)))))
        shape = [int(n) for n in value(node).shape[1:]]
        if shape != [outputs]:
            total = emit(gm, aten.reshape.default, (total, [-1, *shape]))
        for leaf, sign in found.rest:
            total = emit(gm, aten.add.Tensor if sign > 0 else aten.sub.Tensor, (total, leaf))
    node.replace_all_uses_with(total)
    gm.graph.erase_node(node)
    return added


def _side_by_side(gm: fx.GraphModule, vectors: list[Vector]) -> fx.Node:
    """The vectors, in order, as (N, k d); neighbours of one block together."""
    parts = []
    for block in dict.fromkeys(vector.block for vector in vectors):
        places = [vector.place for vector in vectors if vector.block is block]
        if value(block).ndim == 2:
            parts.append(block)
            continue
        part = take(gm, block, 1, places)
        rows = 1 if isinstance(value(block).shape[0], int) else -1
        parts.append(emit(gm, aten.reshape.default, (part, [rows, len(places) * value(block).shape[2]])))
    return joined(gm, parts)
