"""In which order units go: the one that is missed least first.

A unit is missed by what the maps that read it make of it. With rows x (n, I) of their input, centred, C = x^T x, weights
V (O, I) and columns c of the unit:

    activation   |v_c|^2 / [C^-1]_cc      what is off once all other columns make up for it, which V is told after each cut
    magnitude    |w_j| |v_c|              the sizes of the row that writes it and of the columns that read it
    taylor       E |g_c x_c|              g the gradient of the answer by the unit: to first order what its loss moves
    fisher       E (g_c x_c)^2

All are summed over the maps that read the unit; a unit that never varies costs nothing, as it goes into their biases.

Source: activation, Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993, for a layer;
taylor, Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017; fisher, Theis et al.,
"Faster gaze prediction with dense networks and Fisher pruning", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["By", "Reading", "by_activation", "by_score"]

By = Literal["activation", "magnitude", "taylor", "fisher"]

_RIDGE = 1e-3
# Above this many columns their correlations are left out: the inverse would take minutes.
_WIDE = 4096
_STEPS = 512


@dataclass(frozen=True)
class Reading:
    """One map that reads units: rows x (n, I) of its input, its weight (O, I), the columns (units, m) that hold each unit.

    `slopes` (n, I) are gradients of the answer by x, where they are asked for.
    """

    x: Tensor
    weight: Tensor
    places: Tensor
    slopes: Tensor | None = None


def by_score(by: By, readings: Iterable[Reading], writers: Sequence[Tensor]) -> Tensor:
    """The units in the order in which they go, by one number each; `writers` are the weights (units, I) that write them."""
    total: Tensor | None = None
    for reading in readings:
        score = _score(by, reading, writers)[reading.places].sum(1)
        total = score if total is None else total + score
    assert total is not None
    return torch.argsort(total, stable=True)


def _score(by: By, reading: Reading, writers: Sequence[Tensor]) -> Tensor:
    """A number for each column of a map's input."""
    if by == "magnitude":
        size = torch.stack([weight.double().norm(dim=1) for weight in writers]).sum(0)
        found: Tensor = reading.weight.double().norm(dim=0)
        found[reading.places] *= size[:, None]
        return found
    assert reading.slopes is not None
    x = reading.x.double()
    moved = reading.slopes.double() * (x - x.mean(0))
    return moved.abs().mean(0) if by == "taylor" else moved.square().mean(0)


def by_activation(readings: Iterable[Reading]) -> Tensor:
    """The units in the order in which they go, each judged with what the others make up for.

    Cost: an inverse of a matrix (I, I) for each map, and two products of it for each step of at most 512.
    """
    states = [_State.of(reading) for reading in readings]
    units = len(states[0].places)
    left = torch.ones(units, dtype=torch.bool)
    order: list[Tensor] = []
    chunk = -(-units // _STEPS)
    while bool(left.any()):
        cost = torch.stack([state.costs() for state in states]).sum(0)
        cost[~left] = torch.inf
        gone = torch.topk(cost, min(chunk, int(left.sum())), largest=False).indices
        for state in states:
            state.drop(gone)
        left[gone] = False
        order.append(gone)
    return torch.cat(order)


@dataclass
class _State:
    """What a map makes of the columns that are left."""

    inverse: Tensor
    weight: Tensor
    places: Tensor
    alone: bool

    @classmethod
    def of(cls, reading: Reading) -> _State:
        x = reading.x.double()
        x = x - x.mean(0)
        alone = x.shape[1] > _WIDE
        squares = x.square().sum(0) if alone else x.t() @ x
        diagonal = squares if alone else squares.diagonal()
        # Where nothing varies, as on a single row, the weights alone decide.
        diagonal.add_(_RIDGE * float(diagonal.mean()) or 1.0)
        inverse = 1 / squares if alone else torch.linalg.inv(squares)
        return cls(inverse, reading.weight.double().clone(), reading.places, alone)

    def costs(self) -> Tensor:
        diagonal = self.inverse if self.alone else self.inverse.diagonal()
        return (self.weight.square().sum(0) / diagonal)[self.places].sum(1)

    def drop(self, units: Tensor) -> None:
        """Takes the columns of these units out, and tells the others."""
        columns = self.places[units].flatten()
        if not self.alone:
            across = self.inverse[:, columns]
            made = torch.linalg.solve(across[columns], across.t())
            self.weight -= self.weight[:, columns] @ made
            self.inverse -= across @ made
            # Columns that are gone would be numbers next to nothing: one, so that they divide.
            self.inverse[columns, columns] = 1.0
        self.weight[:, columns] = 0.0
