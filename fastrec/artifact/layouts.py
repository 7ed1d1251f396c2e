"""How a model is called <-> plain data: trees of containers, whose classes are named and never imported."""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError, UnsafeArtifactError
from ..inputs import Feature, Layout
from ..trees import Branch, Fixed, Leaf, Tree
from .tensors import dtype_name, dtype_named

__all__ = ["Classes", "classes_of", "layout_data", "layout_of"]

_DEPTH = 32
_KINDS = ("tuple", "list", "dict", "namedtuple", "dataclass", "interaction", "jagged")
_ROLES = ("rows", "fixed", "values", "starts", "bounds", "lengths")
_OWN: dict[str, type] = {
    "builtins.tuple": tuple,
    "builtins.list": list,
    "builtins.dict": dict,
    "collections.OrderedDict": collections.OrderedDict,
    # What torch.sort, max and the like give.
    **{
        f"torch.return_types.{name}": kind
        for name, kind in vars(torch.return_types).items()
        if isinstance(kind, type) and issubclass(kind, tuple)
    },
}
_PLAIN = (type(None), bool, int, float, str)


class Classes:
    """The classes of containers, by their names: those of Python and torch, and those that the caller gives."""

    def __init__(self, given: Sequence[type] = ()) -> None:
        for one in given:
            if not isinstance(one, type):
                raise InputError(f"types takes classes, got {one!r:.80}")
        self._full = _OWN | {_name(one): one for one in given}
        self._short = {one.__qualname__: one for one in given}

    def named(self, name: Any, where: str) -> type:
        """The class of a name. Raises `InputError` for one that was not given."""
        if not isinstance(name, str):
            raise UnsafeArtifactError(f"{where}: {name!r:.80} is the name of no class")
        found = self._full.get(name) or self._short.get(name.rpartition(":")[2])
        if found is None:
            short = name.rpartition(":")[2]
            raise InputError(
                f"{where} holds a {name.replace(':', '.')}, which is the caller's own class and is never imported: "
                f"load(folder, types=[{short}])"
            )
        return found


class _Unknown:
    """In the place of an object that an artifact does not hold."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not saved>"


def classes_of(layout: Layout) -> list[type]:
    """The classes that have to be given where this layout is loaded."""
    found: dict[type, None] = {}

    def visit(tree: Tree) -> None:
        if isinstance(tree, Branch):
            if _name(tree.type) not in _OWN:
                found[tree.type] = None
            for child in tree.children:
                visit(child)

    for tree in (*layout.trees, layout.outputs):
        visit(tree)
    return list(found)


def layout_data(layout: Layout) -> dict[str, Any]:
    """The layout as data that JSON holds. Raises `InputError` for keys and values that it has no form for."""
    defaults = {}
    for name, parameter in (layout.signature.parameters if layout.signature else {}).items():
        if type(parameter.default) in _PLAIN:
            defaults[name] = parameter.default
    return {
        "features": [_feature_data(feature) for feature in layout.features],
        "parameters": list(layout.parameters),
        "positional": layout.positional,
        "trees": [_tree_data(t, name) for name, t in zip(layout.parameters, layout.trees, strict=True)],
        "outputs": _tree_data(layout.outputs, "the answer"),
        "defaults": {name: _value_data(value, name) for name, value in defaults.items()},
        "rows": layout.rows,
        "output_axes": list(layout.output_axes),
        "independent": layout.independent,
        "exempt": list(layout.exempt),
    }


def layout_of(data: Any, classes: Classes, where: str) -> Layout:
    """The layout of such data. Raises `UnsafeArtifactError` where it is none, `InputError` for classes that were not given."""
    fields = {f.name for f in dataclasses.fields(Layout)} - {"signature"} | {"defaults"}
    _expect(isinstance(data, dict) and set(data) == fields, where, "a layout", data)
    features = tuple(
        _feature(one, f"{where}.features[{i}]") for i, one in enumerate(_list(data["features"], where))
    )
    parameters = tuple(_list(data["parameters"], where))
    _expect(all(isinstance(name, str) for name in parameters), where, "names of parameters", parameters)
    trees = _list(data["trees"], where)
    _expect(len(trees) == len(parameters) and type(data["positional"]) is int, where, "a tree each", trees)
    axes = tuple(_list(data["output_axes"], where))
    exempt = tuple(_list(data["exempt"], where))
    _expect(all(axis is None or type(axis) is int for axis in axes), where, "axes", axes)
    _expect(all(type(count) is int for count in exempt), where, "numbers of rows", exempt)
    _expect(data["rows"] is None or type(data["rows"]) is int, where, "a number of rows", data["rows"])
    _expect(isinstance(data["independent"], bool), where, "true or false", data["independent"])
    count = len(features)
    made = [_tree(t, classes, name, count, 0) for name, t in zip(parameters, trees, strict=True)]
    outputs = _tree(data["outputs"], classes, "the answer", max(1, len(axes), 4096), 0)
    return Layout(
        features, parameters, data["positional"], tuple(made), outputs, _signature(data["defaults"], where),
        data["rows"], axes, data["independent"], exempt,
    )  # fmt: skip


def _feature_data(feature: Feature) -> dict[str, Any]:
    data = {f.name: getattr(feature, f.name) for f in dataclasses.fields(feature)}
    request = feature.request if isinstance(feature.request, bool) else list(feature.request)
    return data | {"dtype": dtype_name(feature.dtype), "shape": list(feature.shape), "request": request}


def _feature(data: Any, where: str) -> Feature:
    names = {f.name for f in dataclasses.fields(Feature)}
    _expect(isinstance(data, dict) and set(data) == names, where, "a feature", data)
    shape, request = _list(data["shape"], where), data["request"]
    _expect(all(type(size) is int and size >= 0 for size in shape), where, "a shape", shape)
    if isinstance(request, list):
        _expect(bool(request) and all(type(column) is int for column in request), where, "columns", request)
        request = tuple(request)
    _expect(isinstance(request, bool | tuple), where, "what is the request's", request)
    axis = data["axis"]
    _expect(axis is None or (type(axis) is int and 0 <= axis < max(1, len(shape))), where, "an axis", axis)
    _expect(data["role"] in _ROLES, where, f"one of {', '.join(_ROLES)}", data["role"])
    _expect(type(data["keys"]) is int and data["keys"] > 0, where, "a number of keys", data["keys"])
    _expect(isinstance(data["name"], str) and isinstance(data["group"], str), where, "names", data)
    return Feature(
        **{**data, "shape": tuple(shape), "request": request, "dtype": dtype_named(data["dtype"], where)}
    )


def _tree_data(tree: Tree, where: str) -> Any:
    if isinstance(tree, Leaf):
        return {"leaf": tree.index}
    if isinstance(tree, Fixed):
        if tree.opaque:
            return {"opaque": _name(type(tree.value))}
        return {"fixed": _value_data(tree.value, where)}
    extra = tree.extra
    return {
        "kind": tree.kind,
        "type": _name(tree.type),
        "keys": [_value_data(key, where) for key in tree.keys],
        "children": [_tree_data(child, f"{where}.{key}") for key, child in zip(tree.keys, tree.children, strict=True)],
        "extra": None if extra is None else [_value_data(item, where) for item in extra],
        "lacking": None if tree.lacking is None else [_value_data(key, where) for key in tree.lacking],
    }  # fmt: skip


def _tree(data: Any, classes: Classes, where: str, count: int, depth: int) -> Tree:
    _expect(isinstance(data, dict) and depth < _DEPTH, where, "a tree", data)
    if set(data) == {"leaf"}:
        _expect(type(data["leaf"]) is int and 0 <= data["leaf"] < count, where, "a tensor's place", data)
        return Leaf(data["leaf"])
    if set(data) == {"fixed"}:
        return Fixed(_value(data["fixed"], where))
    if set(data) == {"opaque"}:
        _expect(isinstance(data["opaque"], str), where, "the name of a class", data)
        return Fixed(_Unknown(data["opaque"]), opaque=True)
    _expect(set(data) == {"kind", "type", "keys", "children", "extra", "lacking"}, where, "a tree", data)
    _expect(data["kind"] in _KINDS, where, f"one of {', '.join(_KINDS)}", data["kind"])
    keys = tuple(_value(key, where) for key in _list(data["keys"], where))
    children = _list(data["children"], where)
    _expect(len(keys) == len(children), where, "a key for each child", keys)
    extra = None if data["extra"] is None else tuple(_value(x, where) for x in _list(data["extra"], where))
    lacking = (
        None if data["lacking"] is None else tuple(_value(x, where) for x in _list(data["lacking"], where))
    )
    kind = classes.named(data["type"], where)
    made = [
        _tree(t, classes, f"{where}.{key}", count, depth + 1) for key, t in zip(keys, children, strict=True)
    ]
    return Branch(data["kind"], kind, keys, tuple(made), extra, lacking)


def _value_data(value: Any, where: str) -> Any:
    """A plain value; what JSON has no word for is named."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise InputError(f"{where} holds {value!r:.80}, a {type(value).__name__}, which cannot be saved")


def _value(data: Any, where: str) -> Any:
    if data is None or type(data) in (bool, int, str):
        return data
    _expect(isinstance(data, dict) and len(data) == 1, where, "a plain value", data)
    ((kind, value),) = data.items()
    _expect(isinstance(value, str), where, "a plain value", data)
    try:
        if kind == "float":
            return float.fromhex(value)
        if kind == "bytes":
            return bytes.fromhex(value)
    except (ValueError, OverflowError) as error:
        raise UnsafeArtifactError(f"{where}: {data!r:.80} is no value: {error}") from error
    _expect(kind == "dtype" or data == {"device": "cpu"}, where, "a plain value", data)
    return dtype_named(value, where) if kind == "dtype" else torch.device("cpu")


def _signature(defaults: Any, where: str) -> inspect.Signature | None:
    """As much of the signature as says which arguments may be given though the example had none."""
    _expect(isinstance(defaults, dict), where, "defaults by name", defaults)
    kind = inspect.Parameter.KEYWORD_ONLY
    _expect(all(name.isidentifier() for name in defaults), where, "names of arguments", defaults)
    made = [inspect.Parameter(name, kind, default=_value(value, where)) for name, value in defaults.items()]
    return inspect.Signature(made) if made else None


def _name(kind: type) -> str:
    full = f"{kind.__module__}.{kind.__qualname__}"
    return full if full in _OWN and _OWN[full] is kind else f"{kind.__module__}:{kind.__qualname__}"


def _list(data: Any, where: str) -> list[Any]:
    _expect(isinstance(data, list), where, "a list", data)
    return list(data)


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        raise UnsafeArtifactError(f"{where}: expected {expected}, got {got!r:.120}")
