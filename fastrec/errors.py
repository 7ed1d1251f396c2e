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
    ├── PackageMissing           an optional package is not installed     (also ImportError)
    ├── ArtifactError            a folder that cannot be written or loaded   .path
    │   ├── ArtifactNotFoundError it is not there                    (also FileNotFoundError)
    │   ├── CorruptArtifactError it is not as it was written
    │   └── UnsafeArtifactError  it holds what no artifact holds
    ├── PeerError                another rank has no answer to a call of a sharded model   .ranks
    │   └── PeerLostError        it is gone, or did not answer in time
    ├── UpdateRefused            a new checkpoint that an artifact is not updated to   .path
    └── ForkSafetyError          a model called in a forked process that its threads are not in

Each message says what is wrong, where, what was got against what was expected, and the cure.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ArtifactNotFoundError",
    "BackendError",
    "BackendUnavailable",
    "CaptureError",
    "CorruptArtifactError",
    "FastrecError",
    "ForkSafetyError",
    "IdOutOfRangeError",
    "InputError",
    "MeasurementError",
    "PackageMissing",
    "PeerError",
    "PeerLostError",
    "RequestMismatchError",
    "TechniqueError",
    "UnsafeArtifactError",
    "UpdateRefused",
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


class PeerError(FastrecError):
    """Other ranks, `ranks` where they are known, have no part in a call of a sharded model: each says why on its own side."""

    def __init__(self, message: str, *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class PeerLostError(PeerError):
    """Another rank of a sharded model is gone, or did not answer within the time limit."""


class ArtifactError(FastrecError):
    """An artifact that could not be written, found or loaded; `path` is the file or folder."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ArtifactNotFoundError(ArtifactError, FileNotFoundError):
    """There is no artifact where one was looked for."""

    def __str__(self) -> str:
        # That of OSError shows its arguments.
        return str(self.args[0])


class CorruptArtifactError(ArtifactError):
    """A file that is not as it was written: cut, changed or gone."""


class UnsafeArtifactError(ArtifactError):
    """Something that no artifact of fastrec holds: it is refused before it is read."""


class UpdateRefused(FastrecError):
    """A new checkpoint that does not take an artifact's place; `path` is the folder, which is as it was."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ForkSafetyError(FastrecError):
    """A model with several threads, called in a process that was forked after it was made."""
