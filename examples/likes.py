"""The movietweetings as likes: cleaned, films numbered as they come, and what is known of each user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from films import DATA, LAST, LIKED
from torch import Tensor

# Rows that users share of whom little is known; ratings of a user that count.
SPARE, COUNTED = 64, 100


def cleaned(most: int | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Ratings, oldest first, of all films or the `most` rated, numbered from 1 as they come; what they are called, with genres."""
    items, ratings = (pd.read_csv(DATA / f"movietweetings_{name}.csv.gz") for name in ("items", "ratings"))
    text = items.title.str.normalize("NFKC") + ". " + items.genres.fillna("").str.replace("|", ", ")
    # Duplicates: films of one name are one, and of what a user said of it the last counts.
    ratings["text"] = ratings.item.map(text.set_axis(items.item))
    ratings = ratings.drop_duplicates(["user", "text"], keep="last")
    past = ratings.split == "train"
    # Noise: who found ten films and more all alike says nothing of what they like.
    alike = ratings[past].groupby("user").rating.agg(["size", "nunique"])
    dull = ratings.user.isin(alike.query("size >= 10 and nunique == 1").index)
    # Outliers: some rate hundreds, and would be who is learned from.
    early = past & (ratings.groupby(["split", "user"]).cumcount(ascending=False) >= COUNTED)
    ratings = ratings[~dull & ~early]
    ratings = ratings[ratings.text.isin(ratings.text.value_counts().index[:most])]
    numbers, texts = pd.factorize(ratings.text)
    return ratings.assign(film=numbers + 1), list(texts)


@dataclass
class Past:
    """What is known of users by now: the rows of those who liked several films, what each liked, and all that they rated."""

    rows: Mapping[int, int]
    liked: dict[int, list[int]] = field(default_factory=dict)
    seen: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, ratings: pd.DataFrame) -> Past:
        """A row for each user who likes three films and more of these; others share some."""
        likes = ratings.user[ratings.rating >= LIKED].value_counts()
        return cls({user: row for row, user in enumerate(likes.index[likes >= 3], SPARE)})

    def encode(self, user: int) -> tuple[Tensor, Tensor, Tensor]:
        """A user's row (1,), what they liked last (1, LAST), 0 in front where that is little, and what they have seen (S,)."""
        row, history = self.rows.get(user, hash(user) % SPARE), [0] * LAST + self.liked.get(user, [])
        return torch.tensor([row]), torch.tensor([history[-LAST:]]), torch.tensor(self.seen.get(user, [0]))

    def note(self, ratings: pd.DataFrame) -> list[Tensor]:
        """Takes in ratings, and gives each like: whose (N,), what they had liked before (N, LAST), and the film (N,)."""
        found: list[Sequence[Tensor]] = []
        for user, film, rating in ratings[["user", "film", "rating"]].itertuples(index=False):
            if rating >= LIKED:
                found.append((*self.encode(user)[:2], torch.tensor([film])))
                self.liked.setdefault(user, []).append(film)
            self.seen.setdefault(user, []).append(film)
        return [torch.cat(some) for some in zip(*found, strict=True)]

    def wanted(self, ratings: pd.DataFrame, first: int = 1) -> dict[int, Tensor]:
        """What those who liked something before like of these ratings, of the films from `first` on."""
        likes = ratings[(ratings.rating >= LIKED) & (ratings.film >= first) & ratings.user.isin(self.liked)]
        return {user: torch.tensor(films) for user, films in likes.groupby("user").film.agg(list).items()}
