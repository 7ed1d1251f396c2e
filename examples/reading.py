"""What reads titles and what ranks films by it: trained, as it is and tuned, and compressed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from likes import SPARE, Past
from title_tower import embedded, sensitive
from torch import Tensor, nn
from watching import Films, learn

import fastrec
from fastrec.techniques import Fuse, QuantizeLinears

PASSES, RATE = 8, 2e-3
"""Passes over likes, after more of which less is found of what is held back."""
Part = Sequence[Tensor]
Made = list[tuple[nn.Module, Films]]


def trained(
    tower: nn.Module, layers: nn.Module, rate: float, titles: Part, part: Part, past: Past, steps: int
) -> Made:
    """A tower with the model by what it makes of titles, as it is, and after some steps in which layers of it learn as well."""
    films = Films(embedded(tower, titles), SPARE + len(past.rows))
    for _ in range(PASSES):
        learn(films, part, RATE)
    first = copy.deepcopy((tower, films))
    tower.requires_grad_(False)
    layers.requires_grad_(True)
    learn(films, part, rate, tower, lambda rows: tower(*(x[rows - 1] for x in titles)), most=steps)
    films.texts.weight.data[1:] = embedded(tower, titles)
    for _, model in (made := [first, (tower, films)]):  # tastes of users are of the texts of before
        learn(model, part, RATE)
    return made


def compressed_tower(tower: nn.Module, titles: Part, seconds: float) -> fastrec.CompressedModel:
    """The tower in int8, but for the layers that are most sensitive."""
    some = [tuple(x[rows] for x in titles) for rows in torch.randperm(len(titles[0]))[:512].split(64)]
    return fastrec.compress(
        tower,
        tuple(x[:32] for x in titles),
        recipe=[Fuse(), QuantizeLinears(without=sensitive(tower, some[0]))],
        calibration=some,
        batch_sizes=(1, 32),
        keep_original=False,
        seconds=seconds,
    )
