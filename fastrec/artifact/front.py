"""What stands in front of the graphs of an artifact: how its model is called, what checks batches, and the batch drawn for it."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from ..guards import Guard
from ..program import Program
from ..request import Once
from .guarding import guard_of
from .layouts import Classes, layout_of
from .parts import Parts

__all__ = ["Front"]


class Front:
    """The front of an artifact and its graphs as programs, each read once, when it is asked for."""

    def __init__(self, parts: Parts, classes: Classes) -> None:
        self._parts, self._classes = parts, classes
        self._programs: dict[str, Program] = {}
        manifest = parts.files.manifest
        self._where = parts.files.where("manifest.json")
        self.layout = layout_of(dict(manifest.layout), classes, self._where)
        self.once = Once(self.layout.features, check=manifest.check_request)

    @cached_property
    def flat(self) -> list[Tensor] | None:
        """The drawn batch, as the model takes it."""
        example = self._parts.files.manifest.example
        if example is None:
            return None
        stored = self._parts.stored
        return [stored.tensor(dict(place), f"{self._where}: example") for place in example.tensors]

    def guard(self) -> Guard | None:
        """What checks batches, as one request holds them."""
        manifest = self._parts.files.manifest
        if manifest.guard is None:
            return None
        computed = None if manifest.computed is None else self._parts.graph(manifest.computed)[0]
        return guard_of(dict(manifest.guard), self.once.candidates, computed, self._where)

    def program(self, name: str, *, whole: bool = False) -> Program:
        """A graph with its layout, and the drawn batch as it takes it: `whole` if it takes request features repeated."""
        if name not in self._programs:
            gm, data = self._parts.graph(name)
            layout = layout_of(data, self._classes, self._parts.files.where(f"graphs/{name}.json"))
            flat = self.flat or []
            whole = whole or layout.features == self.layout.features
            self._programs[name] = Program(
                gm, tuple(flat if whole or not flat else self.once.one(flat)), layout
            )
        return self._programs[name]
