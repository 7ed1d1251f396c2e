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
    """A dict that notes which keys are asked for, by whether they are there, and whether anything is asked that any other key would change."""

    def __init__(self, given: dict[Any, Any]) -> None:
        super().__init__(given)
        self.given = frozenset(given)
        self.read: set[Any] = set()
        self.lacking: dict[Any, None] = {}
        self.walked = False

    def note(self, key: Any) -> None:
        """That a key was asked for."""
        if key in self.given:
            self.read.add(key)
        else:
            self.lacking[key] = None


def _noting(name: str, *, keyed: bool) -> Callable[..., Any]:
    method = getattr(dict, name)

    def noted(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        if keyed:
            self.note(args[0])
        else:
            self.walked = True
        return method(self, *args, **kwargs)

    return noted


for _name in ("__getitem__", "__contains__", "__setitem__", "__delitem__", "get", "pop", "setdefault"):
    setattr(_Watched, _name, _noting(_name, keyed=True))
for _name in (
    "__iter__", "__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__ior__", "__repr__",
    "clear", "copy", "items", "keys", "popitem", "update", "values",
):  # fmt: skip
    setattr(_Watched, _name, _noting(_name, keyed=False))


def without_unread(
    layout: Layout, tensors: Sequence[Tensor], function: Callable[..., Any]
) -> tuple[Layout, list[Tensor]]:
    """A layout and the tensors of a batch, without what `function` does not read of its dicts.

    Of a dict that is only asked for keys by name the others are no features, and calls may have any that it was not asked for in
    vain. `function` is called with dicts that note it, and then without what it left out: what it answers has to be the same. A
    dict that is walked through, copied or asked for its length is read whole.
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
        if branch.kind == "dict" and isinstance(made, dict):
            watched[id(branch)] = made = _Watched(made)
        elif branch.kind == "dict":
            watched[id(branch)] = made.data = _Watched(made.data)
        elif branch.kind == "interaction":
            watched[id(branch)] = made.interaction = _Watched(made.interaction)
        return made

    args, kwargs = layout.arguments(tensors, watch)
    if not watched:
        return layout, list(tensors)
    with torch.no_grad():
        expected = tensors_of(function(*args, **kwargs))
    places: list[int] = []
    trees = tuple(_asked(tree, watched, places) for tree in layout.trees)
    features = tuple(layout.features[place] for place in places)
    read, kept = replace(layout, trees=trees, features=features), [tensors[place] for place in places]
    args, kwargs = read.arguments(kept)
    with torch.no_grad():
        found = tensors_of(function(*args, **kwargs))
    same = kept and all(_same(old, new) for old, new in zip(expected, found, strict=True))
    return (read, kept) if same else (layout, list(tensors))


def _asked(tree: Tree, watched: dict[int, _Watched], places: list[int]) -> Tree:
    """The tree of what was asked for; `places` is told where its tensors were."""
    if isinstance(tree, Leaf):
        places.append(tree.index)
        return Leaf(len(places) - 1)
    if isinstance(tree, Fixed):
        return tree
    seen = watched.get(id(tree))
    read = tree.keys if seen is None or seen.walked else seen.read
    kept = {
        key: _asked(child, watched, places)
        for key, child in zip(tree.keys, tree.children, strict=True)
        if key in read
    }
    lacking = None if seen is None or seen.walked else tuple(seen.lacking)
    return replace(tree, keys=tuple(kept), children=tuple(kept.values()), lacking=lacking)


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool(((old == new) | ((old != old) & (new != new))).all())
