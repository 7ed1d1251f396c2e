"""What an update of an artifact took over from the one before."""

from __future__ import annotations

from dataclasses import dataclass

from .wording import count

__all__ = ["Updated"]


@dataclass(frozen=True)
class Updated:
    """An artifact that was brought up to a new checkpoint by its own recipe.

    `digest` is that of the artifact before. Of the `rows` that tables hold in fewer bits `rows_reused` had the same numbers in both
    checkpoints and were taken over; of the `folded` tables `folded_reused` were, whole.
    """

    digest: str
    rows: int = 0
    rows_reused: int = 0
    folded: int = 0
    folded_reused: int = 0

    def __str__(self) -> str:
        said = f"updated from artifact {self.digest[:12]}"
        if self.rows:
            said += f": {self.rows_reused:,} of {count(self.rows, 'coded row')} taken over"
        if self.folded:
            said += f"{',' if self.rows else ':'} {self.folded_reused:,} of {count(self.folded, 'folded table')} taken over"
        return said
