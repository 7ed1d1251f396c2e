"""fastrec makes recommender models answer faster: `compress(model, batch)` gives a drop-in equivalent and a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Budget
    from .compressed import CompressedModel
    from .errors import (
        BackendError,
        BackendUnavailable,
        CaptureError,
        FastrecError,
        IdOutOfRangeError,
        InputError,
        MeasurementError,
        PackageMissing,
        RequestMismatchError,
        TechniqueError,
    )
    from .pipeline import compress
    from .recipe import Recipe
    from .report import Report
    from .retrieval import TopK
    from .serving import Scorer
    from .techniques import Fuse

__version__ = "0.1.0"

_HOMES = {
    "Budget": "budget",
    "CompressedModel": "compressed",
    "Fuse": "techniques",
    "Recipe": "recipe",
    "Report": "report",
    "Scorer": "serving",
    "TopK": "retrieval",
    "compress": "pipeline",
    "BackendError": "errors",
    "BackendUnavailable": "errors",
    "CaptureError": "errors",
    "FastrecError": "errors",
    "IdOutOfRangeError": "errors",
    "InputError": "errors",
    "MeasurementError": "errors",
    "PackageMissing": "errors",
    "RequestMismatchError": "errors",
    "TechniqueError": "errors",
}

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "Budget",
    "CaptureError",
    "CompressedModel",
    "FastrecError",
    "Fuse",
    "IdOutOfRangeError",
    "InputError",
    "MeasurementError",
    "PackageMissing",
    "Recipe",
    "Report",
    "RequestMismatchError",
    "Scorer",
    "TechniqueError",
    "TopK",
    "compress",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing fastrec must stay cheap.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fastrec' has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
