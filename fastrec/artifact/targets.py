"""Which functions a stored graph may call: operators that compute, found by name in torch's own list of them.

A name is looked up, never imported or evaluated. Operators that write to their arguments, draw random numbers or touch
files are refused: no captured graph holds them.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from ..errors import InputError, UnsafeArtifactError
from ..graph import is_random

__all__ = ["check_call", "name_of", "target_named"]

_NAMESPACES = ("aten", "fastrec")
_NAME = re.compile(r"(aten|fastrec)\.([A-Za-z_][A-Za-z0-9_]{0,80})\.([A-Za-z_][A-Za-z0-9_]{0,60})")
# Of sizes, and of what gives several results.
_PYTHON = {
    f"python.{function.__name__}": function
    for function in (
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        torch.sym_max,
        torch.sym_min,
    )
}
_NAMES = {function: name for name, function in _PYTHON.items()}
# Reads a file, or makes one.
_REFUSED = frozenset(["from_file", "pin_memory", "_pin_memory", "set_", "record_stream", "_print"])


def name_of(target: Any) -> str:
    """The name of a function in an artifact. Raises `InputError` at one that has none."""
    if isinstance(target, OpOverload):
        name = f"{target.namespace}.{target._schema.name.partition('::')[2]}.{target._overloadname}"
        if not _reason(target) and _NAME.fullmatch(name):
            return name
    elif target in _NAMES:
        return _NAMES[target]
    raise InputError(f"the graph calls {str(target)[:120]}, which an artifact has no form for")


def target_named(name: Any, where: str) -> Any:
    """The function of a name. Raises `UnsafeArtifactError` at one that no graph of ours calls."""
    if isinstance(name, str) and name in _PYTHON:
        return _PYTHON[name]
    parts = _NAME.fullmatch(name) if isinstance(name, str) else None
    if parts is None:
        raise UnsafeArtifactError(f"{where}: {name!r:.80} is no operator that a graph may call")
    space, packet, overload = parts.groups()
    found = getattr(getattr(getattr(torch.ops, space), packet, None), overload, None)
    reason = _reason(found) if isinstance(found, OpOverload) else "is no operator of this torch"
    if reason:
        raise UnsafeArtifactError(f"{where}: {name} {reason}")
    return found


def check_call(node: fx.Node, where: str) -> None:
    """Raises `UnsafeArtifactError` for a call that draws random numbers."""
    if is_random(node):
        raise UnsafeArtifactError(
            f"{where}: {node.target} draws random numbers, which no captured graph does"
        )


def _reason(target: OpOverload) -> str:
    """Why an operator may not be in a graph, or nothing."""
    name = target._schema.name.partition("::")[2]
    if target.namespace not in _NAMESPACES:
        return f"is not of {' or '.join(_NAMESPACES)}"
    if target._schema.is_mutable:
        return "writes to its arguments"
    if name in _REFUSED or not target._schema.returns:
        return "does more than compute"
    return ""
