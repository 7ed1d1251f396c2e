"""Small recommenders in the styles people write them in: what every technique, backend and `compress` are tested on."""

from __future__ import annotations

from .base import Entry, make
from .convolutions import ENTRIES as CONVOLUTIONS
from .ctr import ENTRIES as CTR
from .foreign import ENTRIES as FOREIGN
from .sequence import ENTRIES as SEQUENCE
from .towers import ENTRIES as TOWERS
from .uncaptured import ENTRIES as UNCAPTURED

__all__ = ["ZOO", "Entry", "make"]

ZOO: tuple[Entry, ...] = (*CTR, *SEQUENCE, *TOWERS, *CONVOLUTIONS, *FOREIGN, *UNCAPTURED)
"""Every model of the zoo."""
