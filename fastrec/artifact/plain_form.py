"""What serves, as a graph in plain torch, and what stands in front of it: an artifact without its sessions.

For who runs the graph in another way. Tables stay where they are on the disk: of them is read what is looked up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..guards import Guard
from ..inputs import Layout
from ..program import Program
from ..request import Once
from .folder import opened
from .guarding import guard_of
from .layouts import Classes, layout_of
from .parts import Parts

__all__ = ["PlainForm", "read_plain"]


@dataclass(frozen=True)
class PlainForm:
    """A captured program with the batch that was drawn for it, and how its model is called.

    `whole` says that the graph takes request features repeated for each candidate, `apart` that rows that are not finite are not
    for it.
    """

    program: Program
    layout: Layout
    once: Once
    guard: Guard | None
    whole: bool
    apart: bool


def read_plain(
    folder: str | os.PathLike[str], *, types: Sequence[type] = (), verify: bool = True
) -> PlainForm:
    """The plain form of what an artifact serves; of one in which the original serves, that of the original.

    Raises what `read` raises, and `InputError` where no graph is in it. Cost: with `verify` a pass over all bytes, without it that
    of reading the graphs.
    """
    with opened(folder, verify=verify) as files:
        parts, manifest, where = Parts(files), files.manifest, files.where("manifest.json")
        classes = Classes(types)
        layout = layout_of(dict(manifest.layout), classes, where)
        once = Once(layout.features, check=manifest.check_request)
        fallback = manifest.fallback
        whole = manifest.program is None
        name = manifest.program or (fallback.graph if fallback.kind == "graph" else None)
        if name is None:
            raise InputError(
                f"{where}: the artifact holds no graph of what serves: {fallback.why or 'it was not captured'}"
            )
        gm, data = parts.graph(name)
        place = manifest.example.tensors if manifest.example else ()
        batch = [parts.stored.tensor(dict(one), f"{where}: example") for one in place]
        if batch and not whole:
            batch = once.one(batch)
        guard = None
        if manifest.guard is not None:
            computed = None if manifest.computed is None else parts.graph(manifest.computed)[0]
            guard = guard_of(dict(manifest.guard), once.candidates, computed, where)
        program = Program(gm, tuple(batch), layout_of(data, classes, files.where(f"graphs/{name}.json")))
        return PlainForm(program, layout, once, guard, whole, manifest.apart)
