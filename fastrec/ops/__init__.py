"""Operators of our own: what a quantised graph computes, in plain torch that is right on any machine.

Each is registered with torch as `fastrec::name`, so a graph holds it like any other call. Backends may compute the
same numbers quicker. A row's result never depends on the rows beside it.
"""

from __future__ import annotations

from .lookups import INT4, INT8, lookup_int4, lookup_int8

__all__ = ["INT4", "INT8", "lookup_int4", "lookup_int8"]
