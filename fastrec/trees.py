"""The structure of batches and answers: containers of tensors, taken apart and built anew."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

__all__ = [
    "Branch",
    "Fixed",
    "Leaf",
    "Tree",
    "build",
    "child_name",
    "collect",
    "describe",
    "got",
    "in_words",
    "is_like",
    "kind_of",
    "opaque",
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
    """A container: `kind` says how to open and rebuild it, `keys` name its children in order.

    Where `lacking` is not None it may have more keys, which nobody reads, but for these, which the model asked for and did not find.
    """

    kind: str
    type: type
    keys: tuple[Any, ...]
    children: tuple[Tree, ...]
    extra: Any = None
    lacking: tuple[Any, ...] | None = None


Tree = Leaf | Fixed | Branch


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
    kind = kind_of(value)
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
            raise InputError(f"feature {name!r}: got {got(value)}, expected a tensor.", feature=name)
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
        if kind_of(value) != tree.kind:
            raise InputError(f"{name!r}: got {got(value)}, expected {in_words(tree):.200}.", feature=name)
        keys, children, _ = _open(tree.kind, value)
        if tuple(keys) != tree.keys:
            children = _reorder(tree, name, keys, children)
        for key, child_tree, child in zip(tree.keys, tree.children, children, strict=True):
            collect(child_tree, child, child_name(name, tree.kind, key), flat)


def build(tree: Tree, tensors: Sequence[Tensor], made: Callable[[Branch, Any], Any] | None = None) -> Any:
    """The value of structure `tree` that holds these flat tensors, in fresh containers; what `made` gives for each of these, if anything."""
    if isinstance(tree, Leaf):
        return tensors[tree.index]
    if isinstance(tree, Fixed):
        return tree.value
    value = _rebuild(tree, [build(child, tensors, made) for child in tree.children])
    return value if made is None else made(tree, value)


def opaque(tree: Tree) -> Iterator[str]:
    """The classes of what is neither a tensor nor a plain value."""
    if isinstance(tree, Fixed) and tree.opaque:
        yield type(tree.value).__name__
    elif isinstance(tree, Branch):
        for child in tree.children:
            yield from opaque(child)


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


def got(value: Any) -> str:
    """What was given, as errors show it."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return "a tensor"
    # Whatever else there is may be long, or not to be shown.
    return f"{kind} {value!r:.80}" if isinstance(value, _PLAIN) and value is not None else kind


def is_like(tree: Tree, value: Any) -> bool:
    """Whether a value may be meant as what has this structure."""
    if isinstance(tree, Branch):
        return kind_of(value) == tree.kind
    return isinstance(tree, Fixed) or isinstance(value, Tensor)


def kind_of(value: Any) -> str | None:
    """How a container is opened, None for what is none."""
    if isinstance(value, tuple):
        return "namedtuple" if hasattr(value, "_fields") else "tuple"
    if isinstance(value, list):
        return "list"
    if isinstance(value, (dict, UserDict)):
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
        if branch.type is dict:
            return items
        # A `UserDict` takes a mapping, whatever its class is; subclasses of dict take keys, and some nothing else.
        return branch.type(items) if issubclass(branch.type, UserDict) else branch.type(**items)
    if branch.kind == "interaction":
        return branch.type(dict(zip(branch.keys, children, strict=True)))
    if branch.kind == "jagged":
        return branch.type(keys=list(branch.extra), values=children[0], lengths=children[1])
    return branch.type(**dict(zip(branch.keys, children, strict=True)))


def _reorder(tree: Branch, name: str, keys: Sequence[Any], children: Sequence[Any]) -> list[Any]:
    given = dict(zip(keys, children, strict=True))
    missing = [key for key in tree.keys if key not in given]
    extra = [key for key in given if key not in tree.keys and (tree.lacking is None or key in tree.lacking)]
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
