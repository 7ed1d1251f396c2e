"""What a model never reads of a batch: keys that it does not look up in a dict, a label or a time say, need not be given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .inputs import Layout
from .trees import Branch, Fixed, Leaf, Tree, tensors_of

__all__ = ["without_unread"]


class _Watched(dict[Any, Any]):
    """A dict that notes which of its keys are looked up, and whether anything is asked that other keys would answer otherwise."""

    def __init__(self, given: dict[Any, Any]) -> None:
        super().__init__(given)
        self.read: set[Any] = set()
        self.walked = False

    def __getitem__(self, key: Any) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self._note(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def _note(self, key: Any) -> None:
        if super().__contains__(key):
            self.read.add(key)
        else:
            self.walked = True


def _walking(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def walked(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        self.walked = True
        return method(self, *args, **kwargs)

    return walked


for _name in (
    "__iter__", "__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__ior__", "__repr__",
    "__setitem__", "__delitem__", "clear", "copy", "items", "keys", "pop", "popitem", "setdefault", "update", "values",
):  # fmt: skip
    setattr(_Watched, _name, _walking(_name))


def without_unread(
    layout: Layout, tensors: Sequence[Tensor], function: Callable[..., Any]
) -> tuple[Layout, list[Tensor]]:
    """A layout and the tensors of a batch, without what `function` does not read of its dicts.

    A dict of which keys were only looked up, each of them there, is an open one: the other keys are no features, and calls may
    have any. `function` is called with dicts that note it and, where it left some out, without these: what it answers has to
    be the same. A dict that is walked through, or asked for what is not there, is read whole.
    """
    try:
        return _read(layout, tensors, function)
    except Exception:  # noqa: BLE001 - a stranger's model may not take what only looks like its dict: it reads everything then
        return layout, list(tensors)


def _read(
    layout: Layout, tensors: Sequence[Tensor], function: Callable[..., Any]
) -> tuple[Layout, list[Tensor]]:
    watched: dict[int, _Watched] = {}

    def watch(branch: Branch, made: Any) -> Any:
        if branch.kind == "dict" and branch.type is dict:
            watched[id(branch)] = made = _Watched(made)
        elif branch.kind == "interaction" and type(made.interaction) is dict:
            watched[id(branch)] = made.interaction = _Watched(made.interaction)
        return made

    args, kwargs = layout.arguments(tensors, watch)
    if not watched:
        return layout, list(tensors)
    with torch.no_grad():
        expected = tensors_of(function(*args, **kwargs))
    places: list[int] = []
    trees = tuple(_open(tree, watched, places) for tree in layout.trees)
    features = tuple(layout.features[place] for place in places)
    read, kept = replace(layout, trees=trees, features=features), [tensors[place] for place in places]
    args, kwargs = read.arguments(kept)
    with torch.no_grad():
        found = tensors_of(function(*args, **kwargs))
    same = kept and all(_same(old, new) for old, new in zip(expected, found, strict=True))
    return (read, kept) if same else (layout, list(tensors))


def _open(tree: Tree, watched: dict[int, _Watched], places: list[int]) -> Tree:
    """The tree of what was read; `places` is told where its tensors were."""
    if isinstance(tree, Leaf):
        places.append(tree.index)
        return Leaf(len(places) - 1)
    if isinstance(tree, Fixed):
        return tree
    seen = watched.get(id(tree))
    read = tree.keys if seen is None or seen.walked else seen.read
    kept = {
        key: _open(child, watched, places)
        for key, child in zip(tree.keys, tree.children, strict=True)
        if key in read
    }
    return replace(
        tree, keys=tuple(kept), children=tuple(kept.values()), open=seen is not None and not seen.walked
    )


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool(((old == new) | ((old != old) & (new != new))).all())
