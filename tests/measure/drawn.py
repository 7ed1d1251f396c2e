"""Labelled rows that are drawn: groups, labels, probabilities before and after."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Drawn(NamedTuple):
    groups: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def drawn(
    groups: int = 300,
    rows: int = 20,
    seed: int = 0,
    *,
    noise: float = 0.2,
    shift: float = 0.05,
    off: float = 0.0,
) -> Drawn:
    """`groups` of as many rows, which share a part of their logits, labels and changes; `off` and `shift` are logits before and after."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), rows)
    logits = rng.normal(size=len(of)) + 0.5 * rng.normal(size=groups)[of] - 1.5
    labels = (rng.random(len(of)) < sigmoid(logits)).astype(float)
    moved = shift + noise * (0.7 * rng.normal(size=groups)[of] + 0.7 * rng.normal(size=len(of)))
    return Drawn(of, labels, sigmoid(logits + off), sigmoid(logits + off + moved))
