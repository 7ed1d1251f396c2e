"""Captured graphs <-> plain data: nodes with what they call, their arguments and the values they give.

Constants are `constant_0`, `constant_1`, ... in an artifact: a module may be called what no graph may safely read back. Where they
were in the model stays beside them, for people.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..earlier import Origin, Region, origins_of, set_origins
from ..errors import InputError, UnsafeArtifactError
from .sizes import Values, value_data
from .targets import check_call, name_of, target_named
from .tensors import Stored, Tensors, dtype_name, dtype_named

__all__ = ["Graph", "constants_of", "graph_data", "graph_of", "path_of", "with_plain_names"]

_NODES = 200_000
_DEPTH = 16
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1000}")
_CONSTANT = re.compile(r"constant_(0|[1-9][0-9]{0,6})")
_PATHS = "fastrec_paths"
_FORMATS = {
    str(one).removeprefix("torch."): one
    for one in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# Numbers that a factory may be told to make at once, without any tensor to say so.
_MADE = 2**28

Graph = dict[str, Any]


def constants_of(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph reads, by attribute, in the order of its nodes."""
    found: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.target not in found:
            held = operator.attrgetter(str(node.target))(gm)
            if not isinstance(held, Tensor):
                raise InputError(
                    f"the graph reads {node.target}, a {type(held).__name__}, which an artifact has no form for"
                )
            found[str(node.target)] = held
    return found


def path_of(gm: fx.GraphModule, name: str) -> str:
    """Where a constant of the graph was in the model that was captured."""
    paths: dict[str, str] = gm.meta.get(_PATHS, {})
    return paths.get(name, name)


def with_plain_names(gm: fx.GraphModule) -> fx.GraphModule:
    """The same graph of the same tensors, its constants called as an artifact calls them; itself where they are."""
    held = constants_of(gm)
    names = {name: f"constant_{number}" for number, name in enumerate(held)}
    if all(name == plain for name, plain in names.items()):
        return gm
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in gm.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            copies[node].target = names[str(node.target)]
    made = fx.GraphModule({names[name]: tensor for name, tensor in held.items()}, graph)
    made.meta[_PATHS] = {plain: path_of(gm, name) for name, plain in names.items()}
    origins = origins_of(gm)
    set_origins(made, {plain: origins[name] for name, plain in names.items() if name in origins})
    return made


def graph_data(gm: fx.GraphModule, tensors: Tensors) -> Graph:
    """The graph as data that JSON holds; its constants have plain names and are known to `tensors`."""
    names: dict[str, str] = {}
    numbers: dict[fx.Node, int] = {}
    nodes = []
    for number, node in enumerate(gm.graph.nodes):
        numbers[node] = number
        # A name that begins as Python's own do (`__and__`) is none that is read.
        name = node.name.lstrip("_") if node.name.startswith("__") else node.name
        one: dict[str, Any] = {"name": name, "op": node.op}
        if node.op in ("placeholder", "get_attr"):
            one["target"] = str(node.target)
        elif node.op == "call_function":
            one["target"] = name_of(node.target)
        elif node.op != "output":
            raise InputError(f"the graph has a node of kind {node.op}, which an artifact has no form for")
        if node.op in ("call_function", "output"):
            one["args"] = [_argument(arg, numbers) for arg in node.args]
            if node.kwargs:
                one["kwargs"] = {key: _argument(arg, numbers) for key, arg in node.kwargs.items()}
        if "val" in node.meta:
            one["value"] = value_data(node.meta["val"], names)
        nodes.append(one)
    origins = origins_of(gm)
    constants = {
        name: tensors.refer(tensor)
        | {"path": path_of(gm, name)}
        | ({"origin": _origin_data(origins[name])} if name in origins else {})
        | ({"parameter": True} if isinstance(tensor, torch.nn.Parameter) else {})
        for name, tensor in constants_of(gm).items()
    }
    return {"constants": constants, "nodes": nodes}


def graph_of(data: Any, stored: Stored, where: str) -> fx.GraphModule:
    """The graph of such data. Raises `UnsafeArtifactError` at anything that no captured graph holds."""
    _expect(isinstance(data, dict) and set(data) == {"constants", "nodes"}, where, "a graph", data)
    held, listed = data["constants"], data["nodes"]
    _expect(isinstance(held, dict) and isinstance(listed, list), where, "constants and nodes", data)
    _expect(len(listed) <= _NODES, where, f"{_NODES:,} nodes at most", len(listed))
    root: dict[str, Any] = {}
    paths: dict[str, str] = {}
    origins: dict[str, Origin] = {}
    for name, place in held.items():
        _expect(bool(_CONSTANT.fullmatch(name)), where, "the name of a constant", name)
        place = dict(place) if isinstance(place, dict) else place
        path = place.pop("path", None) if isinstance(place, dict) else None
        _expect(isinstance(path, str), f"{where}: {name}", "where the constant was in the model", path)
        paths[name] = str(path)
        if isinstance(place, dict) and "origin" in place:
            origins[name] = _origin(place.pop("origin"), f"{where}: {name}")
        trained = isinstance(place, dict) and place.pop("parameter", False) is True
        tensor = stored.tensor(place, f"{where}: {name}")
        root[name] = torch.nn.Parameter(tensor, requires_grad=False) if trained else tensor
    graph = fx.Graph()
    values = Values()
    made: list[fx.Node] = []
    for number, one in enumerate(listed):
        spot = f"{where}: node {number}"
        _expect(
            isinstance(one, dict) and set(one) <= {"name", "op", "target", "args", "kwargs", "value"},
            spot,
            "a node",
            one,
        )
        made.append(_node(graph, one, made, root, spot))
        if "value" in one:
            made[-1].meta["val"] = values.value(one["value"], spot)
    _expect(bool(made) and made[-1].op == "output", where, "an output at the end", None)
    graph.lint()
    gm = fx.GraphModule(root, graph)
    gm.meta[_PATHS] = paths
    set_origins(gm, origins)
    return gm


def _origin_data(origin: Origin) -> Graph:
    return {
        "form": origin.form,
        "pieces": [[p.row, p.rows, p.column, p.columns, p.path, p.how] for p in origin.regions],
    }


def _origin(data: Any, where: str) -> Origin:
    """Where the rows of a constant come from, from plain data."""
    _expect(isinstance(data, dict) and set(data) == {"form", "pieces"}, where, "an origin", data)
    form, pieces = data["form"], data["pieces"]
    _expect(isinstance(form, str) and isinstance(pieces, list), where, "a form and pieces", data)
    for piece in pieces:
        numbers = (
            isinstance(piece, list)
            and len(piece) == 6
            and all(type(n) is int and 0 <= n < 2**48 for n in piece[:4])
        )
        _expect(
            numbers and all(isinstance(text, str) for text in piece[4:]), where, "a piece of a table", piece
        )
    return Origin(tuple(Region(*piece) for piece in pieces), form)


def _node(graph: fx.Graph, one: Graph, made: list[fx.Node], root: dict[str, Any], where: str) -> fx.Node:
    op, name, target = one.get("op"), one.get("name"), one.get("target")
    fit = isinstance(name, str) and _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name)
    _expect(bool(fit) and not str(name).startswith("__"), where, "the name of a node", name)
    if op == "placeholder":
        _expect(isinstance(target, str) and bool(_IDENTIFIER.fullmatch(target)), where, "an input", target)
        return graph.create_node("placeholder", str(target), name=name)
    if op == "get_attr":
        _expect(target in root, where, "a constant of the graph", target)
        return graph.create_node("get_attr", str(target), name=name)
    args = _read(one.get("args", []), made, where, 0)
    kwargs = {}
    given = one.get("kwargs", {})
    _expect(isinstance(args, list) and isinstance(given, dict), where, "arguments", one)
    for key, value in given.items():
        _expect(bool(_IDENTIFIER.fullmatch(key)), where, "the name of an argument", key)
        kwargs[key] = _read(value, made, where, 0)
    if op == "output":
        answer = args[0] if len(args) == 1 else None
        flat = isinstance(answer, list) and all(isinstance(item, fx.Node) for item in answer)
        _expect(flat, where, "a tuple of nodes", one)
        return graph.create_node("output", "output", (tuple(answer or ()),), name=name)
    _expect(op == "call_function", where, "a call", op)
    found = target_named(target, where)
    node = graph.create_node("call_function", found, tuple(args), kwargs, name=name)
    check_call(node, where)
    if not node.all_input_nodes:
        _check_made(args, kwargs, where)
    return node


def _argument(arg: Any, numbers: dict[fx.Node, int]) -> Any:
    """An argument as plain data."""
    if isinstance(arg, fx.Node):
        return {"node": numbers[arg]}
    if arg is None or isinstance(arg, bool | int | str):
        return arg
    if isinstance(arg, float):
        return arg if math.isfinite(arg) else {"float": str(arg)}
    if isinstance(arg, tuple | list):
        return [_argument(item, numbers) for item in arg]
    if isinstance(arg, complex):
        return {"complex": [_argument(arg.real, numbers), _argument(arg.imag, numbers)]}
    if isinstance(arg, torch.dtype):
        return {"dtype": dtype_name(arg)}
    if isinstance(arg, torch.device) and arg.type == "cpu":
        return {"device": "cpu"}
    if isinstance(arg, torch.memory_format) and str(arg).removeprefix("torch.") in _FORMATS:
        return {"memory_format": str(arg).removeprefix("torch.")}
    if arg is torch.strided:
        return {"layout": "strided"}
    raise InputError(f"an argument {arg!r:.80} of the graph is of a kind that an artifact has no form for")


def _read(data: Any, made: list[fx.Node], where: str, depth: int) -> Any:
    """An argument from plain data."""
    if data is None or isinstance(data, bool | int | float):
        return data
    if isinstance(data, str):
        _expect(len(data) <= 1000, where, "a short text", data)
        return data
    _expect(depth < _DEPTH, where, "arguments that are not so deep", data)
    if isinstance(data, list):
        return [_read(item, made, where, depth + 1) for item in data]
    _expect(isinstance(data, dict) and len(data) == 1, where, "an argument", data)
    ((kind, value),) = data.items()
    if kind == "node":
        _expect(type(value) is int and 0 <= value < len(made), where, "an earlier node", value)
        return made[value]
    reader = _KINDS.get(kind)
    if reader is None:
        raise UnsafeArtifactError(f"{where}: {kind!r:.40} is no kind of argument")
    return reader(value, where)


def _named(choices: dict[str, Any]) -> Callable[[Any, str], Any]:
    def read(value: Any, where: str) -> Any:
        _expect(isinstance(value, str) and value in choices, where, f"one of {', '.join(choices)}", value)
        return choices[value]

    return read


def _complex(value: Any, where: str) -> complex:
    parts = [_read(part, [], where, 0) for part in value] if isinstance(value, list) else []
    _expect(
        len(parts) == 2 and all(isinstance(part, int | float) for part in parts), where, "two numbers", value
    )
    return complex(*parts)


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "float": _named(_FLOATS),
    "complex": _complex,
    "dtype": dtype_named,
    "device": _named({"cpu": torch.device("cpu")}),
    "memory_format": _named(_FORMATS),
    "layout": _named({"strided": torch.strided}),
}


def _check_made(args: list[Any], kwargs: dict[str, Any], where: str) -> None:
    """Raises `UnsafeArtifactError` for a call that makes more numbers of nothing than any graph of ours."""
    for given in (*args, *kwargs.values()):
        sizes = given if isinstance(given, list) else [given]
        count = math.prod(abs(size) for size in sizes if type(size) is int)
        _expect(count <= _MADE, where, f"{_MADE:,} numbers at most", given)


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        raise UnsafeArtifactError(f"{where}: expected {expected}, got {got!r:.120}")
