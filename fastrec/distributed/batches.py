"""Batch scoring: one small thing that a plain loop, Ray Data and Spark call alike, with a row given back for every row."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..artifact.folder import folder_digest
from ..errors import InputError
from ..progress import stages
from .scoring import Output, Scoring, outputs_of, scoring
from .tables import cut, joined, length, with_columns

__all__ = ["BatchScorer", "Scored"]


@dataclass(frozen=True)
class Scored:
    """A table with scores and reasons, how many rows it has, and of how many of them each feature was bad ("": no feature's)."""

    table: Any
    rows: int
    bad: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchScorer:
    """Scores the rows of tables with a saved model: as many rows out as in, each with its scores or with a reason.

    It holds the path of the artifact and the digest it had when the scorer was made, not the model: it travels to other processes, each of
    which opens the folder at its first batch. Where another artifact is there by then it is an `ArtifactError`: no rows of two models.

    A table is a data frame of pandas, a table of Arrow or a dict of arrays. A feature reads the column of its name, or of the name's
    last part; `columns` names another one, or one for each entry of a row: `{"ids": ("user", "film")}`. Answers are columns `output`, `output_0`
    or `output_ctr`, as the model's answer has them, and `reason`, in the form the rows came in, behind the columns `keep` (None: all).
    Rows with an id that no table has, a number that is not finite, nothing, no numbers or a list of another length are set aside: NaN and the reason.

    Of a model with `request_features`, rows that agree in these are one call, `rows` rows at the most; rows of one request that follow
    one another, in one batch, cost least. `threads` is what torch is given in worker processes of Ray and Spark before the model is loaded; in any other
    process threads stay what they are. `types` and `verify` are those of `fastrec.load`.

    Raises `ArtifactNotFoundError`, `UnsafeArtifactError` and `CorruptArtifactError` when made; of a table, `InputError` where a feature has no column.
    Cost: nothing is loaded as it is made; a batch with b bad rows checks its rows some log b times more.

    Example: `BatchScorer("ranker", keep=("id",)).score(frame).table`.
    """

    folder: str
    _: dataclasses.KW_ONLY
    threads: int = 1
    rows: int = 1024
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    keep: Sequence[str] | None = None
    output: str = "score"
    types: Sequence[type] = ()
    verify: bool = True
    digest: str = ""

    def __post_init__(self) -> None:
        for name in ("threads", "rows"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name}: got {value!r:.40}, expected a whole number from 1")
        if not isinstance(self.folder, (str, os.PathLike)):
            cure = ": save the model into one first" if isinstance(self.folder, torch.nn.Module) else ""
            raise InputError(
                f"folder takes the path of an artifact, got a {type(self.folder).__name__}{cure}"
            )
        if isinstance(self.keep, str) or not isinstance(self.keep, Iterable | None):
            cure = f": keep=({self.keep!r:.80},)" if isinstance(self.keep, str) else ", as ('id',)"
            raise InputError(f"keep takes names of columns, got a {type(self.keep).__name__}{cure}")
        if not isinstance(self.columns, Mapping):
            raise InputError(
                f"columns takes a mapping of features to columns, as {{'user': 'user_id'}}, got a {type(self.columns).__name__}"
            )
        for name, one in self.columns.items():
            if not isinstance(one, Iterable):
                raise InputError(
                    f"columns: feature {name!r:.80} takes a name, or one for each entry of a row, as ('user', 'film'), got {one!r:.80}"
                )
        # Absolute, for processes that are somewhere else.
        object.__setattr__(self, "folder", str(Path(os.fspath(self.folder)).absolute()))
        object.__setattr__(self, "digest", self.digest or folder_digest(self.folder))

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes one like it, the digest among them: `fn_constructor_kwargs` of Ray's `map_batches`."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What it gives for each row. Nothing is loaded. Raises as `score`, for a model whose answers are not each a row's."""
        return outputs_of(self.folder, self.digest, self.types, self.output)

    def __call__(self, batch: Any) -> Any:
        """A batch with its scores and reasons, in the form it came in: what Ray's `map_batches` calls."""
        return self._scored(batch).table

    def each(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Every batch of a stream with its scores and reasons: what Spark's `mapInPandas` and `mapInArrow` call."""
        return map(self, batches)

    def score(self, table: Any, *, batch: int = 65536, progress: bool = True) -> Scored:
        """A whole table in this process, `batch` rows after the other, with a line of progress where there is a terminal.

        Requests that stand in two batches are two calls.
        """
        if type(batch) is not int or batch < 1:
            raise InputError(f"batch: got {batch!r:.40}, expected a whole number from 1")
        total, bad, done = length(table), Counter[str](), []
        with stages(progress) as show:
            for start in range(0, total, batch) or (0,):
                done.append(self._scored(cut(table, start, min(start + batch, total))))
                bad.update(done[-1].bad)
                ready = min(start + batch, total)
                show(f"{ready:,} of {total:,} rows scored, {bad.total():,} set aside")
        return Scored(joined([one.table for one in done]), total, dict(bad))

    def scoring(self) -> Scoring:
        """The opened model of this process."""
        if _is_worker() and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        columns = tuple(
            (name, one if isinstance(one, str) else tuple(one)) for name, one in self.columns.items()
        )
        return scoring(self.folder, self.digest, tuple(self.types), self.verify, columns, self.output)

    def _scored(self, batch: Any) -> Scored:
        answers, bad = self.scoring()(batch, self.rows)
        n = length(batch)
        reasons = [bad[row][1] if row in bad else None for row in range(n)]
        made = with_columns(batch, self.keep, answers, {"reason": reasons})
        return Scored(made, n, Counter(feature for feature, _ in bad.values()))


def _is_worker() -> bool:
    """Whether an engine started this process, to run what it is given. None is imported: in its worker it is there."""
    spark, ray = sys.modules.get("pyspark"), sys.modules.get("ray")
    if spark is not None and spark.TaskContext.get() is not None:
        return True
    return (
        ray is not None
        and ray.is_initialized()
        and bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)
    )
