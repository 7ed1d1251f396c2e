"""Foreign batches <-> flat tensors: how a stranger's model is called, and what it gives back.

A batch may be a tensor, a tuple (positional arguments), a dict (keyword arguments when its keys are the
entry's parameters, else one argument), nested dicts, lists, tuples and dataclasses, an object with an
`.interaction` dict, or a jagged tensor of keys, values and lengths. A `Layout` is read once from an example;
afterwards `flatten` turns a call into a flat list of tensors, and `arguments` turns it back.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InputError

__all__ = [
    "Branch",
    "Feature",
    "Fixed",
    "Layout",
    "Leaf",
    "Tree",
    "batch_call",
    "build",
    "child_name",
    "collect",
    "describe",
    "flat_layout",
    "in_words",
    "read_layout",
    "tensors_of",
]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


@dataclass(frozen=True)
class Leaf:
    """The place of flat tensor number `index`."""

    index: int


@dataclass(frozen=True)
class Fixed:
    """A value that is not a tensor: the same on every call (`opaque` when it cannot be compared)."""

    value: Any
    opaque: bool = False


@dataclass(frozen=True)
class Branch:
    """A container: `kind` says how to open and rebuild it, `keys` name its children in order."""

    kind: str
    type: type
    keys: tuple[Any, ...]
    children: tuple[Tree, ...]
    extra: Any = None


Tree = Leaf | Fixed | Branch


@dataclass(frozen=True)
class Feature:
    """One flat input: its name in the caller's words, and how it grows with the number of rows N.

    `role` is "rows" (dimension `axis` is N), "fixed" (the same for any N), "values" (all rows' values end to
    end, cut by the feature named `group`), or what cuts them: "starts" (N offsets), "bounds" (N + 1 offsets) or
    "lengths" (`keys` times N lengths, row by row within each key). `request` says that all rows of one call agree
    in it, or in these columns.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    axis: int | None = None
    role: Literal["rows", "fixed", "values", "starts", "bounds", "lengths"] = "fixed"
    group: str = ""
    keys: int = 1
    request: bool | tuple[int, ...] = False

    @property
    def growing(self) -> int | None:
        """The dimension whose size changes with the rows, or None."""
        return self.axis if self.role == "rows" else None if self.role == "fixed" else 0


@dataclass(frozen=True)
class Layout:
    """How a model's entry is called with flat tensors, and how its flat outputs become its answer.

    `parameters` are the entry's arguments in order, the first `positional` of them given by position;
    `trees` holds the structure of each, `outputs` that of the answer. `rows` is the example's number of rows
    (None when no dimension counts rows), `output_axes` the dimension of each flat output that counts them, and
    `independent` whether each row's answer was seen to depend on that row alone, `exempt` the numbers of rows
    at which a captured graph does not stand for the model.
    """

    features: tuple[Feature, ...]
    parameters: tuple[str, ...]
    positional: int
    trees: tuple[Tree, ...]
    outputs: Tree = field(default_factory=lambda: Leaf(0))
    signature: inspect.Signature | None = None
    rows: int | None = None
    output_axes: tuple[int | None, ...] = ()
    independent: bool = True
    exempt: tuple[int, ...] = ()

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The flat tensors of one call, in feature order.

        Raises `InputError` naming the feature that is missing, unexpected or not of the example's kind.
        """
        if not kwargs and len(args) == len(self.parameters):
            values: Sequence[Any] = args
        else:
            values = self._bind(args, kwargs)
        flat: list[Tensor] = []
        for name, tree, value in zip(self.parameters, self.trees, values, strict=True):
            if isinstance(tree, Leaf) and isinstance(value, Tensor):
                flat.append(value)
            else:
                collect(tree, value, name, flat)
        return flat

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How whatever stands for the model is called with a batch of the example's form."""
        if len(self.parameters) == 1 and isinstance(self.trees[0], Branch):
            return (batch if isinstance(batch, tuple) and len(batch) == 1 else (batch,)), {}
        if isinstance(batch, Mapping):
            return (), dict(batch)
        return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call `(args, kwargs)` that carries these flat tensors, in fresh containers."""
        values = [build(tree, tensors) for tree in self.trees]
        names = self.parameters[self.positional :]
        return tuple(values[: self.positional]), dict(zip(names, values[self.positional :], strict=True))

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """The model's answer, in its own structure, from flat outputs."""
        if isinstance(self.outputs, Leaf):
            return tensors[0]
        return build(self.outputs, tensors)

    def opaque(self) -> tuple[str, ...]:
        """Names of arguments (or the answer) holding objects that are neither tensors nor plain values."""
        named = [*zip(self.parameters, self.trees, strict=True), ("the answer", self.outputs)]
        return tuple(f"{name}: {kind}" for name, tree in named for kind in _opaque(tree))

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        given = dict(zip(self.parameters, args, strict=False))
        surplus = len(args) - len(self.parameters)
        if surplus > 0:
            raise InputError(
                f"{len(args)} positional arguments given, the example had {len(self.parameters)} "
                f"({', '.join(self.parameters)}). Call it as the example batch was."
            )
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument {name!r} is given twice.", feature=name)
            given[name] = value
        extra = [name for name in given if name not in self.parameters]
        for name in extra:
            if given[name] is self._default(name):
                del given[name]
            else:
                raise InputError(
                    f"unexpected feature {name!r}: the example batch had {', '.join(self.parameters)}. "
                    "Drop it, or compress with an example that has it.",
                    feature=name,
                )
        for name in self.parameters:
            if name not in given:
                self._refuse_whole(args, kwargs)
                raise InputError(
                    f"missing feature {name!r}: got {', '.join(given) or 'nothing'}, "
                    f"expected {', '.join(self.parameters)}.",
                    feature=name,
                )
        return [given[name] for name in self.parameters]

    def _refuse_whole(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises `InputError` where all that was given is one thing that the first argument is not: none is missing then."""
        if kwargs or len(args) != 1 or _is_like(self.trees[0], args[0]):
            return
        spread = {"dict": "model(**batch)", "tuple": "model(*batch)", "list": "model(*batch)"}
        expected = (
            f"{name!r} ({in_words(tree):.80})"
            for name, tree in zip(self.parameters, self.trees, strict=True)
        )
        raise InputError(
            f"got one argument, {_got(args[0])}, expected {len(self.parameters)}: {', '.join(expected)}. Call it as the example batch "
            f"was: {spread.get(_kind(args[0]) or '', 'each by position or by name')}."
        )

    def _default(self, name: str) -> Any:
        parameters = self.signature.parameters if self.signature else {}
        return parameters[name].default if name in parameters else inspect.Parameter.empty


def batch_call(function: Callable[..., Any], batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How `function` is called with `batch`: `(args, kwargs)`.

    A tuple or list is spread over the positional parameters when there are enough of them, a dict over the
    keyword parameters when its keys are theirs; anything else is one argument.
    """
    signature = _signature(function)
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        if signature is None or (isinstance(batch, tuple) and len(batch) == 1):
            return tuple(batch), {}
        if _binds(signature, tuple(batch), {}):
            single = len(batch) > 1 and isinstance(batch, list) and _binds(signature, (batch,), {})
            return ((batch,), {}) if single else (tuple(batch), {})
        return (batch,), {}
    if isinstance(batch, Mapping) and type(batch) is dict and batch:
        keys = all(isinstance(key, str) for key in batch)
        if (
            keys
            and signature is not None
            and _binds(signature, (), batch)
            and not _only_var_keyword(signature)
        ):
            return (), dict(batch)
    return (batch,), {}


def read_layout(function: Callable[..., Any], batch: Any) -> tuple[Layout, list[Tensor]]:
    """The layout of a call of `function` with `batch` (rows not yet known), and its flat tensors."""
    args, kwargs = batch_call(function, batch)
    signature = _signature(function)
    names = _positional_names(signature, len(args))
    flat: list[tuple[str, Tensor]] = []
    trees = [describe(value, name, flat) for name, value in zip(names, args, strict=True)]
    trees += [describe(value, name, flat) for name, value in kwargs.items()]
    features = tuple(Feature(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in flat)
    parameters = (*names, *kwargs)
    layout = Layout(features, parameters, len(args), tuple(trees), signature=signature)
    return layout, [tensor for _, tensor in flat]


def flat_layout(layout: Layout, outputs: int) -> Layout:
    """The layout of the same call with flat tensors by position and a tuple of `outputs` tensors as its answer."""
    names = tuple(feature.name for feature in layout.features)
    answer = Branch("tuple", tuple, tuple(range(outputs)), tuple(Leaf(i) for i in range(outputs)))
    leaves = tuple(Leaf(i) for i in range(len(names)))
    return replace(
        layout, parameters=names, positional=len(names), trees=leaves, outputs=answer, signature=None
    )


def tensors_of(answer: Any) -> list[Tensor]:
    """The tensors of an answer, in order."""
    found: list[tuple[str, Tensor]] = []
    describe(answer, "answer", found)
    return [tensor for _, tensor in found]


def describe(value: Any, name: str, flat: list[tuple[str, Tensor]]) -> Tree:
    """The structure of `value`; its tensors are appended to `flat` with their names."""
    if isinstance(value, Tensor):
        flat.append((name, value))
        return Leaf(len(flat) - 1)
    kind = _kind(value)
    if kind is None:
        return Fixed(value, opaque=not isinstance(value, _PLAIN))
    keys, children, extra = _open(kind, value)
    trees = tuple(
        describe(child, child_name(name, kind, key), flat) for key, child in zip(keys, children, strict=True)
    )
    branch = Branch(kind, type(value), tuple(keys), trees, extra)
    if kind in ("tuple", "namedtuple", "dataclass", "dict", "interaction", "jagged"):
        try:
            _rebuild(branch, list(children))
        except Exception:  # noqa: BLE001 - a container that cannot be made anew is a stranger's object
            return Fixed(value, opaque=True)
    return branch


def collect(tree: Tree, value: Any, name: str, flat: list[Tensor]) -> None:
    """Append the tensors of `value`, which must have the structure `tree`, to `flat`."""
    if isinstance(tree, Leaf):
        if not isinstance(value, Tensor):
            raise InputError(f"feature {name!r}: got {_got(value)}, expected a tensor.", feature=name)
        flat.append(value)
    elif isinstance(tree, Fixed):
        same = tree.opaque or value is tree.value or (type(value) is type(tree.value) and value == tree.value)
        if not same:
            raise InputError(
                f"{name!r}: got {value!r}, but the model was compressed with {tree.value!r}. "
                "Compress once per value of an argument that is not a tensor.",
                feature=name,
            )
    else:
        if _kind(value) != tree.kind:
            raise InputError(f"{name!r}: got {_got(value)}, expected {in_words(tree):.200}.", feature=name)
        keys, children, _ = _open(tree.kind, value)
        if tuple(keys) != tree.keys:
            children = _reorder(tree, name, keys, children)
        for key, child_tree, child in zip(tree.keys, tree.children, children, strict=True):
            collect(child_tree, child, child_name(name, tree.kind, key), flat)


def build(tree: Tree, tensors: Sequence[Tensor]) -> Any:
    """The value of structure `tree` that holds these flat tensors, in fresh containers."""
    if isinstance(tree, Leaf):
        return tensors[tree.index]
    if isinstance(tree, Fixed):
        return tree.value
    return _rebuild(tree, [build(child, tensors) for child in tree.children])


def in_words(tree: Tree) -> str:
    """A structure, as errors show it.

    Example:
        >>> in_words(describe({"id": torch.ones(2), "rest": (torch.ones(2), 0.5)}, "batch", []))
        "a dict of 'id' (a tensor), 'rest' (a tuple of a tensor, 0.5)"
    """
    if isinstance(tree, Leaf):
        return "a tensor"
    if isinstance(tree, Fixed):
        return "an object" if tree.opaque else f"{tree.value!r:.80}"
    parts = [in_words(child) for child in tree.children]
    if tree.kind not in ("tuple", "list"):
        parts = [f"{key!r} ({part})" for key, part in zip(tree.keys, parts, strict=True)]
    if tree.extra:
        parts.append(f"keys {', '.join(map(repr, tree.extra))}")
    return f"a {tree.type.__name__} of {', '.join(parts) or 'nothing'}"


def _got(value: Any) -> str:
    """What was given, as errors show it."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return "a tensor"
    # Whatever else there is may be long, or not to be shown.
    return f"{kind} {value!r:.80}" if isinstance(value, _PLAIN) and value is not None else kind


def _is_like(tree: Tree, value: Any) -> bool:
    """Whether a value may be meant as what has this structure."""
    if isinstance(tree, Branch):
        return _kind(value) == tree.kind
    return isinstance(tree, Fixed) or isinstance(value, Tensor)


def _kind(value: Any) -> str | None:
    if isinstance(value, tuple):
        return "namedtuple" if hasattr(value, "_fields") else "tuple"
    if isinstance(value, list):
        return "list"
    if isinstance(value, dict):
        return "dict"
    if isinstance(getattr(value, "interaction", None), dict):
        return "interaction"
    if not isinstance(value, type) and all(
        callable(getattr(value, part, None)) for part in ("keys", "values", "lengths")
    ):
        return "jagged"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "dataclass"
    return None


def _open(kind: str, value: Any) -> tuple[Sequence[Any], Sequence[Any], Any]:
    if kind in ("tuple", "list"):
        return range(len(value)), value, None
    if kind == "namedtuple":
        return value._fields, value, None
    if kind == "dict":
        return tuple(value), tuple(value.values()), None
    if kind == "interaction":
        return tuple(value.interaction), tuple(value.interaction.values()), None
    if kind == "jagged":
        return ("values", "lengths"), (value.values(), value.lengths()), tuple(value.keys())
    names = tuple(item.name for item in dataclasses.fields(value) if item.init)
    return names, tuple(getattr(value, name) for name in names), None


def _rebuild(branch: Branch, children: list[Any]) -> Any:
    if branch.kind == "tuple":
        # Results of torch.sort, max and the like are tuples of a type of their own.
        return tuple(children) if branch.type is tuple else branch.type(children)
    if branch.kind == "list":
        return children
    if branch.kind == "namedtuple":
        return branch.type(*children)
    if branch.kind == "dict":
        items = dict(zip(branch.keys, children, strict=True))
        return items if branch.type is dict else branch.type(**items)
    if branch.kind == "interaction":
        return branch.type(dict(zip(branch.keys, children, strict=True)))
    if branch.kind == "jagged":
        return branch.type(keys=list(branch.extra), values=children[0], lengths=children[1])
    return branch.type(**dict(zip(branch.keys, children, strict=True)))


def _reorder(tree: Branch, name: str, keys: Sequence[Any], children: Sequence[Any]) -> list[Any]:
    given = dict(zip(keys, children, strict=True))
    missing = [key for key in tree.keys if key not in given]
    extra = [key for key in given if key not in tree.keys]
    if missing or extra:
        what = f"missing {missing[0]!r}" if missing else f"unexpected {extra[0]!r}"
        feature = child_name(name, tree.kind, missing[0] if missing else extra[0])
        raise InputError(
            f"{name!r}: {what}; got {', '.join(map(str, keys))}, expected {', '.join(map(str, tree.keys))}.",
            feature=feature,
        )
    return [given[key] for key in tree.keys]


def child_name(name: str, kind: str, key: Any) -> str:
    """What a part of a container is called."""
    return f"{name}[{key}]" if kind in ("tuple", "list") else f"{name}.{key}"


def _opaque(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Fixed) and tree.opaque:
        yield type(tree.value).__name__
    elif isinstance(tree, Branch):
        for child in tree.children:
            yield from _opaque(child)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # built-in callables have none
        return None


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _only_var_keyword(signature: inspect.Signature) -> bool:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return kinds <= {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def _positional_names(signature: inspect.Signature | None, count: int) -> tuple[str, ...]:
    usual = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in signature.parameters.values() if p.kind in usual] if signature else []
    return tuple(known[i] if i < len(known) else f"args[{i}]" for i in range(count))
