"""The zoo's programs, read and captured once for all tests of a process: nothing that is given one writes to it."""

from __future__ import annotations

from functools import cache

import torch

from fastrec.capture import capture
from fastrec.program import Program

from .base import Entry, make

__all__ = ["captured", "program_of"]


@cache
def program_of(entry: Entry) -> Program:
    """The program as it is read from a batch of four rows."""
    model = make(entry)
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    return Program.read(target, entry.batch(4, torch.Generator().manual_seed(4)))


@cache
def captured(entry: Entry) -> Program:
    """Its graph."""
    return capture(program_of(entry))
