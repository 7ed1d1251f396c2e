"""Reference operators: what quantised numbers mean, in plain torch, right on any machine.

Each is registered with torch as `fastrec::name`, so a graph holds it like any other call. A technique puts them into a
graph, a backend may lower them to kernels of its own. A row's result never depends on the rows beside it.
"""

from __future__ import annotations

from .convolutions import int8_convolution
from .linears import int8_linear
from .lookups import INT4, INT8, lookup_int4, lookup_int8

__all__ = ["INT4", "INT8", "int8_convolution", "int8_linear", "lookup_int4", "lookup_int8"]
