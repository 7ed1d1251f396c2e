"""fastrec makes recommender models answer faster: `compress(model, batch)` gives a drop-in equivalent and a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .budget import Budget
    from .compressed import CompressedModel, load
    from .errors import (
        ArtifactError,
        ArtifactNotFoundError,
        BackendError,
        BackendUnavailable,
        CaptureError,
        CorruptArtifactError,
        FastrecError,
        ForkSafetyError,
        IdOutOfRangeError,
        InputError,
        MeasurementError,
        PackageMissing,
        PeerError,
        PeerLostError,
        RequestMismatchError,
        TechniqueError,
        UnsafeArtifactError,
        UpdateRefused,
    )
    from .following import Following, follow
    from .pipeline import compress
    from .recipe import Recipe
    from .report import Report
    from .retrieval import TopK
    from .serving import Scorer
    from .techniques import Fuse
    from .updating import update

__version__ = VERSION

_HOMES = {
    "Budget": "budget",
    "CompressedModel": "compressed",
    "Following": "following",
    "Fuse": "techniques",
    "Recipe": "recipe",
    "Report": "report",
    "Scorer": "serving",
    "TopK": "retrieval",
    "compress": "pipeline",
    "follow": "following",
    "load": "compressed",
    "update": "updating",
    "ArtifactError": "errors",
    "ArtifactNotFoundError": "errors",
    "BackendError": "errors",
    "BackendUnavailable": "errors",
    "CaptureError": "errors",
    "CorruptArtifactError": "errors",
    "FastrecError": "errors",
    "ForkSafetyError": "errors",
    "IdOutOfRangeError": "errors",
    "InputError": "errors",
    "MeasurementError": "errors",
    "PackageMissing": "errors",
    "PeerError": "errors",
    "PeerLostError": "errors",
    "RequestMismatchError": "errors",
    "TechniqueError": "errors",
    "UnsafeArtifactError": "errors",
    "UpdateRefused": "errors",
}

__all__ = [
    "ArtifactError",
    "ArtifactNotFoundError",
    "BackendError",
    "BackendUnavailable",
    "Budget",
    "CaptureError",
    "CompressedModel",
    "CorruptArtifactError",
    "FastrecError",
    "Following",
    "ForkSafetyError",
    "Fuse",
    "IdOutOfRangeError",
    "InputError",
    "MeasurementError",
    "PackageMissing",
    "PeerError",
    "PeerLostError",
    "Recipe",
    "Report",
    "RequestMismatchError",
    "Scorer",
    "TechniqueError",
    "TopK",
    "UnsafeArtifactError",
    "UpdateRefused",
    "compress",
    "follow",
    "load",
    "update",
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
