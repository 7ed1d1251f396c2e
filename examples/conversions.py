"""The hotel bookings as conversions: cleaned, normalised, encoded. A booking converts if it is kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from bookings import DATA, FIELDS, NUMBERS
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler
from torch import Tensor, nn

from fastrec.measure import Evaluator, evaluator

Part = tuple[Tensor, Tensor, Tensor]
SPARE, RARE = 4, 5
"""Rows of each field that its rare and unseen values share, and how often a value is there to have one of its own."""


def cleaned() -> pd.DataFrame:
    """One line for each booking, each split in the order of its weeks, with whether it was `kept`."""
    raw = pd.read_csv(DATA, dtype=dict.fromkeys(FIELDS, str), keep_default_na=False)
    # Noise: rooms for nobody, and a price below nothing. Duplicates: the rooms of one group are one decision, and the
    # bounds of what is lost count rows that are independent.
    guests = raw[["adults", "children", "babies"]].astype(int).sum(axis=1)
    lines = raw[(guests > 0) & (raw.adr >= 0)].drop_duplicates()
    # Outliers: what is beyond nearly all of training counts as that.
    most = lines.loc[lines.split == "train", list(NUMBERS)].quantile(0.999)
    lines = lines.assign(kept=1 - lines.label, **lines[list(NUMBERS)].clip(upper=most, axis=1))
    return lines.sort_values("arrival_date_week_number", key=pd.to_numeric, kind="stable")


class Encoder:
    """Ids and numbers of bookings, as training had them; `sizes` says how many ids each field has."""

    def __init__(self, known: pd.DataFrame) -> None:
        counts = [known[name].value_counts() for name in FIELDS]
        words = [sorted(count.index[count >= RARE]) for count in counts]
        coder = OrdinalEncoder(categories=words, handle_unknown="use_encoded_value", unknown_value=-1)
        self.words = coder.fit(known[list(FIELDS)])
        scale = make_pipeline(FunctionTransformer(np.log1p), StandardScaler())
        self.numbers = scale.fit(known[list(NUMBERS)])
        self.sizes = [SPARE + len(some) for some in words]

    def __call__(self, lines: pd.DataFrame) -> Part:
        """Ids (N, F), numbers (N, D) and whether each was kept (N,)."""
        known = self.words.transform(fields := lines[list(FIELDS)]).astype(np.int64)
        # The same everywhere and always, which Python's own hash of a text is not.
        hashed = fields.apply(lambda values: pd.util.hash_array(values.to_numpy(object)) % SPARE)
        ids = np.where(known < 0, hashed.to_numpy(np.int64), known + SPARE)
        numbers = self.numbers.transform(lines[list(NUMBERS)]).astype(np.float32)
        return torch.tensor(ids), torch.tensor(numbers), torch.tensor(lines.kept.to_numpy(np.float32))


def load(every: int = 1) -> tuple[dict[str, pd.DataFrame], dict[str, Part], list[int]]:
    """Each `every`-th booking of each split, as lines and as tensors, and how many ids each field has; the newest are cut
    in two: "served", which a model answers and then learns from, and "test", which come after."""
    splits = {name: some.iloc[::every] for name, some in cleaned().groupby("split")}
    newest = splits.pop("test")
    splits |= {"served": newest.iloc[: len(newest) // 2], "test": newest.iloc[len(newest) // 2 :]}
    encoder = Encoder(splits["train"])
    return splits, {name: encoder(some) for name, some in splits.items()}, encoder.sizes


def batches(part: Part, count: int = 8192, size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Some rows as a model takes them, without what came of them."""
    order = torch.randperm(len(part[2]), generator=torch.Generator().manual_seed(0))[:count]
    return [(part[0][rows], part[1][rows]) for rows in order.split(size)]


def judged(part: Part, metrics: list[str], size: int = 1000, **more: object) -> Evaluator:
    """What scores of these rows are worth, so many rows a call."""
    ids, numbers, kept = part
    return evaluator(zip(ids.split(size), numbers.split(size), strict=True), kept, metrics, **more)


@torch.no_grad()
def scored(model: nn.Module, part: Part, size: int = 1000) -> Tensor:
    """The scores of these rows."""
    return torch.cat([model(*batch) for batch in zip(*(x.split(size) for x in part[:2]), strict=True)])
