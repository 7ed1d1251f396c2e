"""Every error fastrec raises, as one tree.

    FastrecError
    ├── CaptureError             the model's data flow could not be recorded
    ├── TechniqueError           a technique failed on this model        .technique .site
    ├── BackendError             a backend could not run this model      .backend
    │   └── BackendUnavailable   its package or tool is missing          (also ImportError)
    ├── InputError               a batch that does not fit               (also ValueError) .feature .row
    │   ├── IdOutOfRangeError    an id that no table has                 (also IndexError)
    │   └── RequestMismatchError rows of a request feature differ
    ├── MeasurementError         outputs that cannot be judged or timed
    └── PackageMissing           a package that a page or chart needs    (also ImportError)

Each message says what is wrong, where, what was got against what was expected, and the cure.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "CaptureError",
    "FastrecError",
    "IdOutOfRangeError",
    "InputError",
    "MeasurementError",
    "PackageMissing",
    "RequestMismatchError",
    "TechniqueError",
]


class FastrecError(Exception):
    """Base of every error raised by fastrec."""


class CaptureError(FastrecError):
    """The model's data flow could not be recorded; the text gives each reader's reason."""


class TechniqueError(FastrecError):
    """A technique failed on this model."""

    def __init__(self, message: str, *, technique: str, site: str = "") -> None:
        super().__init__(message)
        self.technique = technique
        self.site = site


class BackendError(FastrecError):
    """A backend could not run this model."""

    def __init__(self, message: str, *, backend: str) -> None:
        super().__init__(message)
        self.backend = backend


class BackendUnavailable(BackendError, ImportError):
    """A backend's package or tool is not installed; the text says how to get it."""


class InputError(FastrecError, ValueError):
    """A batch, or an argument of `compress`, that does not fit."""

    def __init__(self, message: str, *, feature: str = "", row: int | None = None) -> None:
        super().__init__(message)
        self.feature = feature
        self.row = row


class IdOutOfRangeError(InputError, IndexError):
    """An id outside its table: negative, or at or above the number of rows."""


class RequestMismatchError(InputError):
    """Rows of a request feature that differ within one call."""


class MeasurementError(FastrecError):
    """Outputs that cannot be judged, or timings too few to state."""


class PackageMissing(FastrecError, ImportError):
    """An optional package is not installed; the text says how to get it."""
