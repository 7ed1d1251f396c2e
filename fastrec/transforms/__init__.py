"""What makes stored features smaller: vectors in their principal components, histories in their low frequencies."""

from __future__ import annotations

from .dct import DctTransform
from .pca import PcaTransform

__all__ = ["DctTransform", "PcaTransform"]
