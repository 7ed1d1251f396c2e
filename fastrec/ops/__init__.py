"""Reference operators: what quantised numbers mean, in plain torch, right on any machine.

A technique puts them into a graph, a backend lowers them to kernels of its own.
"""

from __future__ import annotations

from .linears import int8_linear

__all__ = ["int8_linear"]
