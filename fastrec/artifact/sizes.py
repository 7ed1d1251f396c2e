"""Symbolic sizes and values of nodes <-> plain data: an expression is a tree of names, read by an allow-list."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import CeilDiv, CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from ..errors import InputError, UnsafeArtifactError
from .tensors import dtype_name, dtype_named

__all__ = ["Values", "value_data"]

_FORMS: dict[str, Any] = {
    "Add": sympy.Add,
    "Mul": sympy.Mul,
    "Max": Max,
    "Min": Min,
    "FloorDiv": FloorDiv,
    "CleanDiv": CleanDiv,
    "CeilDiv": CeilDiv,
    "Mod": Mod,
    "PythonMod": PythonMod,
}
_HINT = 7
_DEPTH = 24


def value_data(value: Any, names: dict[str, str]) -> Any:
    """What a node's `meta["val"]` says, as plain data; `names` gives symbols names that do not depend on what ran before."""
    if isinstance(value, Tensor):
        shape = [_size_data(size, names) for size in value.shape]
        return {"dtype": dtype_name(value.dtype), "shape": shape}
    if isinstance(value, tuple | list):
        return [value_data(item, names) for item in value]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int | torch.SymInt):
        return {"size": _size_data(value, names)}
    raise InputError(f"a node gives a {type(value).__name__}, which an artifact has no form for")


def _size_data(size: int | torch.SymInt, names: dict[str, str]) -> Any:
    if isinstance(size, int):
        return size
    return _expression_data(size.node.expr, names)


def _expression_data(expression: Any, names: dict[str, str]) -> Any:
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        known = expression.name
        free = "u" if known.startswith("u") else "s"
        return names.setdefault(known, f"{free}{len(names)}")
    if expression.is_Pow and expression.exp.is_Integer and 1 < expression.exp < 5:
        return ["Mul", *[_expression_data(expression.base, names)] * int(expression.exp)]
    form = type(expression).__name__
    if form not in _FORMS:
        raise InputError(f"a size is {expression}, which an artifact has no form for")
    return [form, *(_expression_data(part, names) for part in expression.args)]


class Values:
    """Makes the values of one graph's nodes again: fake tensors of one mode, symbols of one environment."""

    def __init__(self) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self._symbols: dict[str, torch.SymInt] = {}

    def value(self, data: Any, where: str) -> Any:
        """The value of a node. Raises `UnsafeArtifactError` where the data describes none."""
        if isinstance(data, list):
            return [self.value(item, where) for item in data]
        if data is None or isinstance(data, bool | float):
            return data
        if isinstance(data, dict) and set(data) == {"size"}:
            return self.size(data["size"], where)
        if (
            not isinstance(data, dict)
            or set(data) != {"dtype", "shape"}
            or not isinstance(data["shape"], list)
        ):
            raise UnsafeArtifactError(f"{where}: {data!r:.80} is the value of no node")
        shape = [self.size(size, where) for size in data["shape"]]
        with self.mode:
            return torch.empty(shape, dtype=dtype_named(data["dtype"], where))

    def size(self, data: Any, where: str) -> int | torch.SymInt:
        """A size, fixed or free."""
        if type(data) is int:
            return data
        expression = self._expression(data, where, 0)
        # Sizes of what is picked by value have no hint: nobody knows them before.
        free = any(str(symbol).startswith("u") for symbol in expression.free_symbols)
        hint = None if free else int(expression.xreplace(dict.fromkeys(expression.free_symbols, _HINT)))
        made = self.env.create_symintnode(expression, hint=hint)
        assert isinstance(made, int | torch.SymInt)
        return made

    def _expression(self, data: Any, where: str, depth: int) -> Any:
        if type(data) is int:
            return sympy.Integer(data)
        if isinstance(data, str) and 1 < len(data) < 8 and data[0] in "su" and data[1:].isdecimal():
            return self._symbol(data).node.expr
        if isinstance(data, list) and data and depth < _DEPTH and data[0] in _FORMS and 2 < len(data) < 64:
            parts = [self._expression(part, where, depth + 1) for part in data[1:]]
            if data[0] in ("Add", "Mul", "Max", "Min") or len(parts) == 2:
                try:
                    return _FORMS[data[0]](*parts)
                except (ArithmeticError, TypeError, ValueError) as error:
                    raise UnsafeArtifactError(f"{where}: {data!r:.80} is no size: {error}") from error
        raise UnsafeArtifactError(f"{where}: {data!r:.80} is no size")

    def _symbol(self, name: str) -> torch.SymInt:
        if name not in self._symbols:
            made = self.env.create_unbacked_symint() if name[0] == "u" else self._backed(name)
            self._symbols[name] = made
        return self._symbols[name]

    def _backed(self, name: str) -> torch.SymInt:
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        # Each of its own hint: sizes with one hint would be taken for one.
        symbol = self.env.create_symbol(
            _HINT, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
        )
        made = self.env.create_symintnode(symbol, hint=_HINT)
        assert isinstance(made, torch.SymInt)
        return made
