"""What one call of `compress` gathers on its way, for its report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

from .report import Step, Trial
from .techniques import Skip

__all__ = ["Journal"]


@dataclass
class Journal:
    """Steps, trials, notes and the time that is left; `deadline` is on the clock of `time.perf_counter`, `allowed` what there was."""

    began: float
    deadline: float
    allowed: float = field(init=False)
    steps: list[Step] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    calibration: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allowed = self.deadline - self.began

    def restart(self) -> None:
        """All that is left of the time is for what comes now."""
        self.allowed = max(1e-3, self.deadline - time.perf_counter())

    def failed(self, label: str, reason: str) -> None:
        """Notes that something did not get as far as timing."""
        self.trials.append(Trial(0, label, None, None, reason))
