"""Ways to run a captured graph, one shape: `Backend.compile(program) -> Session`.

A backend decides the kernel, never the numbers: every session gives the graph's answer up to float rounding.
"""

from __future__ import annotations

from .base import Backend, Session, Source, Translated
from .eager import Eager
from .inductor import Inductor
from .models import ModelSession
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .repeated import Repeated

__all__ = [
    "BACKENDS",
    "Backend",
    "Eager",
    "Inductor",
    "ModelSession",
    "OnnxRuntime",
    "OpenVino",
    "Repeated",
    "Session",
    "Source",
    "Translated",
    "installed",
]

BACKENDS: dict[str, type[Backend]] = {kind.name: kind for kind in (Eager, OnnxRuntime, Inductor, OpenVino)}


def installed() -> tuple[Backend, ...]:
    """The settings worth trying on this machine, quickest to compile first.

    Nothing is imported to find out. Example: `[backend.label for backend in installed()]`.
    """
    candidates: tuple[Backend, ...] = (
        Eager(),
        OnnxRuntime(lookups="session"),
        OnnxRuntime(lookups="torch"),
        OpenVino(lookups="torch"),
        Inductor(),
    )
    return tuple(backend for backend in candidates if backend.unavailable() is None)
