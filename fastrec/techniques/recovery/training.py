"""Descent towards the original's answers: the state of a run, its steps, and where it is kept so that it goes on after a kill."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Kept", "Run", "digest_of"]

Loss = Callable[[Mapping[str, Tensor], int], Tensor]
"""The loss of one batch, by its number, with these tensors."""

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_LONGEST = 1.0  # length of a gradient, all tensors together, beyond which it is shortened
_LOOKS = 10


@dataclass
class Run:
    """Adam from `start`, its rate falling to zero as a cosine, over batches in an order of its own seed.

        m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - lr_t m' / (sqrt v' + eps)

    What is kept is the state that was best on the batches `held`, at one of some ten looks; the start is one of them.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015; Loshchilov and Hutter, "SGDR", 2017.
    """

    steps: int
    lr: float
    now: dict[str, Tensor]
    mean: dict[str, Tensor]
    square: dict[str, Tensor]
    best: dict[str, Tensor]
    first: float = math.inf
    lowest: float = math.inf
    done: int = 0

    @classmethod
    def begin(cls, start: Mapping[str, Tensor], steps: int, lr: float) -> Run:
        """A run that has done nothing."""
        zeros = {name: torch.zeros_like(held) for name, held in start.items()}
        return cls(
            steps, lr, dict(start), zeros, {name: held.clone() for name, held in zeros.items()}, dict(start)
        )

    def go(self, loss: Loss, order: Sequence[int], held: Sequence[int], seen: Callable[[Run], None]) -> None:
        """Runs to the end; `order` gives the batch of each step, `first` and `lowest` are losses on the batches held."""
        if not self.done:
            self.first = self.lowest = self._look(loss, self.now, held)
        apart = max(1, self.steps // _LOOKS)
        while self.done < self.steps:
            self._step(loss, order[self.done])
            self.done += 1
            if self.done % apart == 0 or self.done == self.steps:
                found = self._look(loss, self.now, held)
                if found < self.lowest:
                    self.lowest, self.best = found, dict(self.now)
                seen(self)

    def _look(self, loss: Loss, tensors: Mapping[str, Tensor], held: Sequence[int]) -> float:
        with torch.no_grad():
            return sum(float(loss(tensors, batch)) for batch in held) / len(held)

    def _step(self, loss: Loss, batch: int) -> None:
        leaves = {name: held.detach().requires_grad_() for name, held in self.now.items()}
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss(leaves, batch), list(leaves.values()), allow_unused=True)
        length = math.sqrt(sum(float(slope.square().sum()) for slope in slopes if slope is not None))
        if not math.isfinite(length):
            return  # a batch that overflows teaches nothing
        shorter = min(1.0, _LONGEST / max(length, _EPSILON))
        rate = self.lr * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        first, second = _BETAS
        for name, slope in zip(leaves, slopes, strict=True):
            if slope is None:
                continue
            slope = slope * shorter
            self.mean[name] = first * self.mean[name] + (1 - first) * slope
            self.square[name] = second * self.square[name] + (1 - second) * slope.square()
            mean = self.mean[name] / (1 - first ** (self.done + 1))
            square = self.square[name] / (1 - second ** (self.done + 1))
            self.now[name] = self.now[name].detach() - rate * mean / (square.sqrt() + _EPSILON)


def digest_of(settings: str, *tensors: Tensor) -> str:
    """A name for a run: of what it starts from and what it learns."""
    found = hashlib.sha256(settings.encode())
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """Where a run is kept: one file, written whole or not at all."""

    path: Path

    def write(self, run: Run) -> None:
        """Keeps the state of a run."""
        parts = {"now": run.now, "mean": run.mean, "square": run.square, "best": run.best}
        tensors = {
            f"{part}/{name}": held.contiguous().clone()
            for part, some in parts.items()
            for name, held in some.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}")
        save_file(
            tensors, fresh, {"done": str(run.done), "first": run.first.hex(), "lowest": run.lowest.hex()}
        )
        fresh.replace(self.path)

    def read(self, run: Run) -> None:
        """Brings a run to where it was kept; one that was damaged or never kept begins anew."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata()
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            parts = {
                part: {name: found[f"{part}/{name}"] for name in run.now}
                for part in ("now", "mean", "square", "best")
            }
            done, first, lowest = int(told["done"]), *(float.fromhex(told[k]) for k in ("first", "lowest"))
        except (SafetensorError, KeyError, ValueError, TypeError):
            return
        run.now, run.mean, run.square, run.best = (parts[part] for part in ("now", "mean", "square", "best"))
        run.done, run.first, run.lowest = done, first, lowest
