"""The movietweetings as tensors: who rated which film, its year and genres, what they liked before, and whether they did."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
LIKED = 8
"""The rating from which on a film was liked: that of half of them."""
GENRES, LAST = 8, 5
"""How many genres a film has at most, and how many of the films liked last are looked at."""


def read(name: str) -> list[dict[str, str]]:
    """The rows of one of the files."""
    with gzip.open(DATA / f"movietweetings_{name}.csv.gz", "rt", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load() -> tuple[dict[str, tuple[Tensor, ...]], dict[str, int]]:
    """Ids (N, 3), genres (N, 8), the films liked last (N, 5) and labels (N,) of each split, and how many ids each has.

    Ids are of the user, the film and its year. 0 stands for what training has not seen, and for no genre and no film.
    """
    films, ratings = {film["item"]: film for film in read("items")}, read("ratings")
    known = [row for row in ratings if row["split"] == "train"]
    users, items = _numbered(row["user"] for row in known), _numbered(row["item"] for row in known)
    years = _numbered(_year(films[row["item"]]) for row in known)
    genres = _numbered(name for film in films.values() for name in _genres(film))
    rows: dict[str, list[list[int]]] = {"train": [], "valid": [], "test": []}
    liked: dict[str, list[int]] = {}
    for row in ratings:  # oldest first: nobody's history holds what came after
        film, history = films[row["item"]], liked.setdefault(row["user"], [])
        ids = [users.get(row["user"], 0), items.get(row["item"], 0), years.get(_year(film), 0)]
        label = int(row["rating"]) >= LIKED
        bags = _padded([genres[name] for name in _genres(film)], GENRES) + _padded(history[-LAST:], LAST)
        rows[row["split"]].append([*ids, *bags, label])
        history += [ids[1]] * label
    sizes = {"users": len(users), "films": len(items), "years": len(years), "genres": len(genres)}
    return {name: _part(part) for name, part in rows.items()}, {name: n + 1 for name, n in sizes.items()}


def _year(film: dict[str, str]) -> str:
    """A title ends with its year, in brackets."""
    return film["title"][-5:-1]


def _genres(film: dict[str, str]) -> list[str]:
    return [name for name in film["genres"].split("|") if name]


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names), 1)}


def _padded(ids: list[int], size: int) -> list[int]:
    return ids + [0] * (size - len(ids))


def _part(rows: list[list[int]]) -> tuple[Tensor, ...]:
    ids, genres, liked, label = torch.tensor(rows).split([3, GENRES, LAST, 1], 1)
    return ids.contiguous(), genres.contiguous(), liked.contiguous(), label[:, 0].float()
