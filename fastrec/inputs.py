"""Foreign batches <-> flat tensors: how a stranger's model is called, and what it gives back.

A batch may be a tensor, a tuple (positional arguments), a dict (keyword arguments when its keys are the
entry's parameters, else one argument), nested dicts, lists, tuples and dataclasses, an object with an
`.interaction` dict, or a jagged tensor of keys, values and lengths. A `Layout` is read once from an example;
afterwards `flatten` turns a call into a flat list of tensors, and `arguments` turns it back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InputError
from .trees import Branch, Leaf, Tree, build, collect, describe, got, in_words, is_like, kind_of, opaque

__all__ = ["Feature", "Layout", "batch_call", "flat_layout", "read_layout"]


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

    @property
    def counted(self) -> bool:
        """Whether a dimension counts rows; if none does, only the example's own shape is known."""
        return self.rows is not None

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

    def arguments(
        self, tensors: Sequence[Tensor], made: Callable[[Branch, Any], Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call `(args, kwargs)` that carries these flat tensors, in fresh containers, or in what `made` gives for each of these."""
        values = [build(tree, tensors, made) for tree in self.trees]
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
        return tuple(f"{name}: {kind}" for name, tree in named for kind in opaque(tree))

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
        if kwargs or len(args) != 1 or is_like(self.trees[0], args[0]):
            return
        spread = {"dict": "model(**batch)", "tuple": "model(*batch)", "list": "model(*batch)"}
        expected = (
            f"{name!r} ({in_words(tree):.80})" for name, tree in zip(self.parameters, self.trees, strict=True)
        )
        raise InputError(
            f"got one argument, {got(args[0])}, expected {len(self.parameters)}: {', '.join(expected)}. Call it as the example batch "
            f"was: {spread.get(kind_of(args[0]) or '', 'each by position or by name')}."
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
    if isinstance(batch, Mapping) and batch:
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
