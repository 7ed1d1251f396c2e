"""Quadratic forms of field vectors: what a graph computes of vectors by selection, weights, sums and products in pairs.

    field        x[n, s, :]  =  sum_k C[k, s] v_k[n, :]                    v_k (N, d), or (1, d) the request's
    product      x[n, s, :]  =  sum_(k, l) C[k, l, s] v_k[n, :] * v_l[n, :]
    dot          x[n, s]     =  sum_(k, l) C[k, l, s] <v_k[n], v_l[n]>

A `Form` holds the coefficients C, float64, its keys in the place of the rows: whatever acts on each row alone and
linearly (a selection by index tensors, weights, a sum over fields, a join, a linear map) acts on them as it does on
the tensor itself, so it is read by calling it on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from ...graph import constant, operator_name, value
from .interactions import turned
from .joins import Joins
from .once import spread_of

__all__ = ["Form", "Forms", "Key", "Vector", "combined"]

_LARGEST = 4_000_000
_MOST = 300
_JOINED = frozenset(("stack", "cat", "concat", "add", "sub"))
_AXES = frozenset(("select", "slice", "index_select", "unsqueeze", "squeeze", "sum", "mean"))
_FLATS = frozenset(("view", "reshape", "flatten"))
_SINGLE = _AXES | _FLATS | {"mul", "div", "neg", "index", "matmul"}


@dataclass(frozen=True)
class Vector:
    """One of the vectors of a block (N, F, d) or (1, F, d), or (N, d) or (1, d) itself."""

    block: fx.Node
    place: int

    @property
    def once(self) -> bool:
        """Whether it is the request's."""
        return isinstance(value(self.block).shape[0], int)


Key: TypeAlias = tuple[Vector, ...]
"""One vector for a field, two for a product."""


@dataclass(frozen=True)
class Form:
    """Coefficients (keys, *shape of a row), the last dimension 1 unless it is a dot product."""

    kind: Literal["field", "product", "dot"]
    keys: tuple[Key, ...]
    coefficients: Tensor


def combined(forms: Sequence[Form]) -> tuple[tuple[Key, ...], list[Tensor]]:
    """The coefficients of several forms of the same kind over the keys of all of them."""
    place: dict[Key, int] = {}
    for form in forms:
        for key in form.keys:
            place.setdefault(key, len(place))
    made = []
    for form in forms:
        c = form.coefficients
        index = torch.tensor([place[key] for key in form.keys])
        made.append(c.new_zeros(len(place), *c.shape[1:]).index_add_(0, index, c))
    return tuple(place), made


class Forms:
    """Reads the forms of one graph."""

    def __init__(self, gm: fx.GraphModule, joins: Joins) -> None:
        self._gm, self._joins = gm, joins
        self._known: dict[fx.Node, Form | None] = {}

    def read(self, node: Any) -> Form | None:
        """What a node is of products of vectors, or of vectors selected from a block; None for anything else."""
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return None
        if not isinstance(node.meta.get("val"), Tensor) or not value(node).is_floating_point():
            return None
        if node not in self._known:
            self._known[node] = None
            found = self._form(node)
            if found is not None and found.coefficients.numel() <= _LARGEST:
                shape = [str(n) for n in value(node).shape[1:]]
                got = [str(n) for n in found.coefficients.shape[1:]]
                if found.kind != "dot" and got:
                    got[-1] = shape[-1] if shape and got[-1] == "1" else "?"
                self._known[node] = found if got == shape else None
        return self._known[node]

    def _form(self, node: fx.Node) -> Form | None:
        name = operator_name(node)
        if (spread := spread_of(node)) is not None and spread[1] == 0:
            return self.read(spread[0])
        if name == "mul" and len(node.args) == 2 and not self._constants(node):
            return self._multiplied(self._field(node.args[0]), self._field(node.args[1]))
        if name == "pow" and node.args[1] == 2:
            return self._multiplied(self._field(node.args[0]), self._field(node.args[0]))
        if name in ("bmm", "matmul") and (right := turned(node.args[1])) is not None:
            left = self._field(node.args[0])
            return self._summed(left, self._field(right), "asd,btd->abst")
        if name == "einsum":
            return self._einsum(node)
        return self._linear(node, name)

    def _constants(self, node: fx.Node) -> bool:
        return any(not isinstance(arg, fx.Node) or constant(self._gm, arg) is not None for arg in node.args)

    def _field(self, node: Any) -> Form | None:
        """The vectors of a node: as it is read, or its own."""
        found = self.read(node)
        if found is not None:
            return found if found.kind == "field" else None
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            return None
        spread = spread_of(node)
        if spread is not None and spread[1] == 0:
            node = spread[0]
        shape = value(node).shape
        if len(shape) not in (2, 3) or not value(node).is_floating_point() or node.op == "get_attr":
            return None
        if (isinstance(shape[0], int) and shape[0] != 1) or any(not isinstance(n, int) for n in shape[1:]):
            return None
        if len(shape) == 2:
            return Form("field", ((Vector(node, 0),),), torch.ones(1, 1, dtype=torch.float64))
        join = self._joins.read(node)
        if join is not None and (join.axis, join.rows) == (1, 0):
            vectors = [
                Vector(join.once, k) if k < join.width else Vector(join.each, k - join.width)
                for k in join.order
            ]
        else:
            vectors = [Vector(node, k) for k in range(shape[1])]
        keys = {(vector,): None for vector in vectors}
        place = {key: i for i, key in enumerate(keys)}
        coefficients = torch.zeros(len(keys), len(vectors), 1, dtype=torch.float64)
        for k, vector in enumerate(vectors):
            coefficients[place[vector,], k] = 1.0
        return Form("field", tuple(keys), coefficients)

    def _multiplied(self, left: Form | None, right: Form | None) -> Form | None:
        if left is None or right is None or not _widths_alike(left, right):
            return None
        a, b = left.coefficients, right.coefficients
        ndim = max(a.ndim, b.ndim)
        a, b = (c.reshape(len(c), *[1] * (ndim - c.ndim), *c.shape[1:]) for c in (a, b))
        if len(a) * len(b) * max(a[0].numel(), b[0].numel()) > _LARGEST:
            return None
        return _paired("product", left, right, a.unsqueeze(1) * b.unsqueeze(0))

    def _summed(self, left: Form | None, right: Form | None, equation: str, *more: Tensor) -> Form | None:
        if left is None or right is None or not _widths_alike(left, right):
            return None
        a, b = left.coefficients, right.coefficients
        if a.numel() * b.numel() > _LARGEST:
            return None
        return _paired("dot", left, right, torch.einsum(equation, a, b, *more))

    def _einsum(self, node: fx.Node) -> Form | None:
        """`einsum` of two fields over their vectors, constants beside them."""
        equation: Any = node.args[0]
        operands: Any = node.args[1]
        equation = equation.replace(" ", "")
        if "->" not in equation or "." in equation:
            return None
        inputs, result = equation.split("->")
        terms = inputs.split(",")
        fields = [k for k, arg in enumerate(operands) if constant(self._gm, arg) is None]
        if len(fields) != 2:
            return None
        (first, second), rest = [terms[k] for k in fields], [k for k in range(len(terms)) if k not in fields]
        row, across = first[0], first[-1]
        elsewhere = "".join(terms[k] for k in rest)
        if (
            second[0] != row
            or second[-1] != across
            or result[:1] != row
            or "A" in equation
            or "B" in equation
        ):
            return None
        if across in result + elsewhere + first[:-1] + second[:-1] or row in elsewhere + result[1:]:
            return None
        weights = [c.double() for k in rest if (c := constant(self._gm, operands[k])) is not None]
        left, right = (self._field(operands[k]) for k in fields)
        inside = ",".join(["A" + first[1:], "B" + second[1:], *[terms[k] for k in rest]])
        return self._summed(left, right, f"{inside}->AB{result[1:]}", *weights)

    def _linear(self, node: fx.Node, name: str) -> Form | None:
        """What acts on each row of its arguments, linearly: called on their coefficients."""
        if name in _JOINED:
            return self._joined(node, name)
        sources = [arg for arg in node.args if isinstance(arg, fx.Node) and constant(self._gm, arg) is None]
        if name not in _SINGLE or len(sources) != 1 or (form := self._inner(sources[0])) is None:
            return None
        source, c = sources[0], form.coefficients
        if name in _FLATS:
            shape = value(node).shape
            rows = str(shape[0]) == str(value(source).shape[0])
            known = form.kind == "dot" and rows and all(isinstance(n, int) for n in shape[1:])
            return Form("dot", form.keys, c.reshape(len(c), *shape[1:])) if known else None
        if not self._by_rows(node, name, source, form):
            return None

        def given(arg: fx.Node) -> Tensor | None:
            held = c if arg is source else constant(self._gm, arg)
            return held.double() if held is not None and held.is_floating_point() else held

        args, kwargs = fx.map_arg((node.args, node.kwargs), given)
        made = node.target(*args, **kwargs)  # type: ignore[operator]  # a node's target is called
        kind = form.kind
        if name in ("sum", "mean") and kind == "product" and self._over_vectors(node, source):
            made = made / int(value(source).shape[-1]) if name == "mean" else made
            kind = "dot"
        return Form(kind, form.keys, made)

    def _joined(self, node: fx.Node, name: str) -> Form | None:
        added = name in ("add", "sub")
        parts: Any = node.args if added else node.args[0]
        forms = [form for part in parts if (form := self._inner(part)) is not None]
        if node.kwargs or len(forms) != len(parts) or len({form.kind for form in forms}) != 1:
            return None
        if added and sum(len(form.keys) for form in forms) > _MOST:
            return None
        keys, coefficients = combined(forms)
        if added:
            return Form(forms[0].kind, keys, node.target(*coefficients))  # type: ignore[operator]  # a node's target is called
        if not self._elsewhere(node, forms[0], name):
            return None
        return Form(forms[0].kind, keys, node.target(coefficients, *node.args[1:]))  # type: ignore[operator]  # a node's target is called

    def _by_rows(self, node: fx.Node, name: str, source: fx.Node, form: Form) -> bool:
        """Whether a call leaves the rows alone, and the vectors unless it sums all of each of them."""
        if name in _AXES:
            return self._elsewhere(node, form, name)
        others = [held for arg in node.args if (held := constant(self._gm, arg)) is not None]
        if name == "index":
            indices: Any = node.args[1]
            return indices[0] is None and (form.kind == "dot" or len(indices) < value(source).ndim)
        if name == "matmul":
            fields = form.kind == "field" and value(source).ndim == 3
            return fields and node.args[1] is source and all(held.ndim == 2 for held in others)
        if name == "div" and node.args[0] is not source:
            return False
        return all(held.ndim < value(node).ndim or held.shape[0] == 1 for held in others)

    def _inner(self, node: Any) -> Form | None:
        found = self.read(node)
        if found is None and isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor):
            return self._field(node)
        return found

    def _over_vectors(self, node: fx.Node, source: fx.Node) -> bool:
        dims: Any = node.args[1]
        return value(source).ndim - 1 in [int(k) % value(source).ndim for k in dims]

    def _elsewhere(self, node: fx.Node, form: Form, name: str) -> bool:
        """Whether a call leaves the rows alone, and the vectors unless it sums all of each of them."""
        if len(node.args) < 2:
            return False
        given: Any = node.args[1]
        dims = given if isinstance(given, (list, tuple)) else [given]
        if not dims or any(not isinstance(k, int) for k in dims):
            return False
        ndim = value(node).ndim if name in ("unsqueeze", "stack") else form.coefficients.ndim
        away = {k % ndim for k in dims}
        if 0 in away:
            return False
        whole = form.kind == "dot" or (name in ("sum", "mean") and form.kind == "product")
        return whole or ndim - 1 not in away


def _widths_alike(left: Form, right: Form) -> bool:
    widths = {int(value(v.block).shape[-1]) for form in (left, right) for key in form.keys for v in key}
    return len(widths) == 1


def _paired(kind: Literal["product", "dot"], left: Form, right: Form, c: Tensor) -> Form:
    """Coefficients (keys, keys, ...) by unordered pairs."""
    names: dict[Vector, int] = {}
    for form in (left, right):
        for (vector,) in form.keys:
            names.setdefault(vector, len(names))
    place: dict[Key, int] = {}
    index = []
    for (a,) in left.keys:
        for (b,) in right.keys:
            key = (a, b) if names[a] <= names[b] else (b, a)
            index.append(place.setdefault(key, len(place)))
    made = c.new_zeros(len(place), *c.shape[2:])
    made.index_add_(0, torch.tensor(index), c.reshape(len(index), *c.shape[2:]))
    return Form(kind, tuple(place), made)
