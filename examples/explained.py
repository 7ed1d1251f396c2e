"""What each technique of a recipe did to the scores of real rows: as a whole, and by the values of each feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from bookings import FIELDS, NUMBERS
from torch import Tensor, nn

from fastrec import CompressedModel
from fastrec.capture import capture
from fastrec.program import Program
from fastrec.techniques import Technique

STEPS = ("after", "changes", "mean move", "largest", "decisions turned", "log loss")
FEATURES = ("feature", "values", "between values", "by chance", "most at", "moved by", "rows")


def steps(
    model: nn.Module, recipe: Iterable[Technique], known: Sequence[tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """The scores of the model, and then after each technique, all those before it applied as well."""
    program = replace(capture(Program.read(model, known[0])), calibration=tuple(known))
    yield "the model", program.answers(inputs)[0]
    for technique in recipe:
        program = program.with_model(technique.apply(program).model)
        yield technique.name, program.answers(inputs)[0]


def moved(fast: CompressedModel, given: Iterable[tuple[str, Tensor]], kept: Tensor) -> list[tuple[str, ...]]:
    """The rows of `STEPS`: changes of each, how far it moved scores, the decisions at 0.5 that it turned, and the log loss after it."""
    changes = Counter({step.technique: len(step.changes) for step in fast.report.steps})
    rows, before = list[tuple[str, ...]](), None
    for name, scores in given:
        before = scores if before is None else before
        move, turned = (scores - before).abs(), int(((scores > 0.5) != (before > 0.5)).sum())
        loss = float(nn.functional.binary_cross_entropy(scores, kept))
        said = (f"{changes[name]}", f"{move.mean():.1e}", f"{move.max():.1e}", f"{turned:,}", f"{loss:.5f}")
        rows.append((name, *said))
        before = scores
    return rows  # fmt: skip


def by_feature(lines: pd.DataFrame, move: Tensor) -> pd.DataFrame:
    """How far scores moved by the values of each feature, the most telling feature first.

    `between` is the standard deviation of the mean move over the values, each counted by its rows; `chance` is what that were if moves
    had nothing to do with the feature, sd * sqrt((values - 1) / rows); `most` is the value that adds most to it, and `moved` how far its
    `rows` moved on average.
    """
    moves, found = pd.Series(move.double().numpy(), index=lines.index), []
    for name in (*FIELDS, *NUMBERS):
        values = lines[name] if name in FIELDS else _cut(lines[name])
        of = moves.groupby(values).agg(["mean", "size"])
        apart = of["size"] * (of["mean"] - moves.mean()) ** 2
        between, chance = np.sqrt(apart.sum() / len(moves)), moves.std() * np.sqrt((len(of) - 1) / len(moves))
        found.append((name, len(of), between, chance, apart.idxmax(), *of.loc[apart.idxmax()]))
    columns = ["feature", "values", "between", "chance", "most", "moved", "rows"]
    told = pd.DataFrame(found, columns=columns)
    return told.loc[(told.chance - told.between).sort_values().index]


def shown(features: pd.DataFrame) -> list[tuple[str, ...]]:
    """The rows of `FEATURES`."""
    return [
        (one.feature, f"{one.values:,}", f"{one.between:.1e}", f"{one.chance:.1e}", one.most, f"{one.moved:+.1e}", f"{one.rows:,.0f}")
        for one in features.itertuples()
    ]  # fmt: skip


def _cut(numbers: pd.Series) -> pd.Series:
    """Nothing, and fifths of what is above: most of these numbers are zero."""
    parts = pd.qcut(numbers.where(numbers > 0), 5, duplicates="drop").astype(str)
    return parts.where(numbers > 0, "0")
