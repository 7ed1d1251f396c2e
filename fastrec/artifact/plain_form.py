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
from .front import Front
from .layouts import Classes
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
        front, manifest = Front(Parts(files), Classes(types)), files.manifest
        fallback = manifest.fallback
        whole = manifest.program is None
        name = manifest.program or (fallback.graph if fallback.kind == "graph" else None)
        if name is None:
            raise InputError(
                f"{files.where('manifest.json')}: the artifact holds no graph of what serves: {fallback.why or 'it was not captured'}"
            )
        program = front.program(name, whole=whole)
        return PlainForm(program, front.layout, front.once, front.guard(), whole, manifest.apart)
