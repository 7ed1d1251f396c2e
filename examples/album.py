"""Pictures of articles, drawn: a shape, a texture and a colour for each category, the larger the dearer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from shop import Shop
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from torch import Tensor

CATEGORIES, SIDE = 20, 24
SHAPES = (
    lambda x, y: np.hypot(x, y) < 1,
    lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    lambda x, y: abs(x) + abs(y) < 1.2,
    lambda x, y: abs(np.hypot(x, y) - 0.75) < 0.3,
    lambda x, y: (np.minimum(abs(x), abs(y)) < 0.35) & (np.maximum(abs(x), abs(y)) < 1),
)
TEXTURES = (
    lambda x, _: np.ones_like(x),
    lambda x, _: 0.75 + 0.25 * np.sign(np.sin(9 * x)),
    lambda _, y: 0.75 + 0.25 * np.sign(np.sin(9 * y)),
    lambda x, y: 0.75 + 0.25 * np.sign(np.sin(7 * x) * np.sin(7 * y)),
)


def album(lines: pd.DataFrame) -> dict[int, Tensor]:
    """The picture (3, SIDE, SIDE), bytes, of each article of these lines.

    Articles that the same customers buy are of one category (k-means of their vectors). It is taken from all lines, as what a picture shows
    does not depend on when it is looked at: so it tells more than a camera would, and what it is worth to a ranker is not to be read off.
    """
    shop = Shop()
    shop.learn(lines)
    items = list(shop.known)
    vectors = normalize(shop.factors(lines)[[shop.known[item] for item in items]])
    category = KMeans(CATEGORIES, n_init=1, random_state=0).fit_predict(vectors)
    dear = lines.groupby("item").price.median()[items].rank(pct=True).to_numpy()
    return dict(zip(items, torch.from_numpy(drawn(category, dear)), strict=True))


def drawn(category: np.ndarray, dear: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pictures (M, 3, SIDE, SIDE) of things of these categories (M,) and sizes (M,) from 0 to 1, each a bit elsewhere, on a grainy ground."""
    rng, count = np.random.default_rng(seed), len(category)
    palette = rng.uniform(0.2, 1, (CATEGORIES, 3, 1, 1))
    grid = np.linspace(-1.4, 1.4, SIDE)
    places = rng.uniform(-0.25, 0.25, (2, count, 1, 1))
    scale = (0.6 + 0.5 * dear)[:, None, None]
    x, y = ((grid[None, None, :] - places[0]) / scale, (grid[None, :, None] - places[1]) / scale)
    x, y = np.broadcast_arrays(x, y)
    light = np.zeros((count, SIDE, SIDE))
    for one in range(CATEGORIES):
        shape, texture = SHAPES[one % len(SHAPES)], TEXTURES[one // len(SHAPES) % len(TEXTURES)]
        at = category == one
        light[at] = shape(x[at], y[at]) * texture(x[at], y[at])
    ground = rng.normal(0.1, 0.05, (count, 3, SIDE, SIDE))
    return (255 * np.clip(light[:, None] * palette[category] + ground, 0, 1)).astype(np.uint8)
