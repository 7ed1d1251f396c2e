"""Batches scored by Spark, in two executors."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch

from fastrec import CompressedModel, InputError
from fastrec.distributed.batches import BatchScorer
from fastrec.distributed.spark import schema
from tests import pages

from .conftest import Ranker, rows, tensors
from .killing import BLOCK, BLOCKS, blocks, check_nothing_lost_or_doubled, end_once

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'fastrec[spark]'")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java, which is not installed"),
]


@pytest.fixture(scope="module")
def spark(importable: None) -> Iterator[Any]:
    """A master and two executors of one core each, processes of this machine."""
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        session = (
            SparkSession.builder.master("local-cluster[2,1,1024]")
            .config("spark.ui.enabled", "false")
            .config("spark.task.maxFailures", "2")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.default.parallelism", str(BLOCKS // 2))
            .config("spark.sql.execution.arrow.pyspark.enabled", "true")
            # A block is a batch.
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(BLOCK))
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


@pytest.fixture(scope="module")
def frame(spark: Any) -> Any:
    """The blocks, two in each partition."""
    table = pa.concat_tables(blocks())
    return spark.createDataFrame(table).cache()


def test_a_killed_worker_loses_and_doubles_nothing(frame: Any, folder: Path, tmp_path: Path) -> None:
    scorer, flag = BatchScorer(str(folder), keep=["row"]), str(tmp_path / "ended")

    def ending(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            end_once(batch["row"], flag)
            yield from scorer.each([batch])

    found = frame.mapInPandas(ending, schema(scorer, frame.schema)).toPandas()
    assert Path(flag).exists()
    check_nothing_lost_or_doubled(found, scorer)


def test_the_scorer_is_a_function_and_a_column_as_the_page_says(
    frame: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    names = pages.run("docs/scoring.md", "mapInPandas", frame=frame)
    assert names["bad"] == 24
    for found in (names["scored"], names["scored_too"]):
        assert found.columns == ["row", "score_ctr", "score_value", "reason"]
        check_nothing_lost_or_doubled(found.toPandas(), names["scorer"])


def test_record_batches_of_arrow_are_scored_as_they_are(frame: Any, folder: Path) -> None:
    scorer = BatchScorer(str(folder), keep=["row"])
    found = frame.mapInArrow(scorer.each, schema(scorer, frame.schema))
    check_nothing_lost_or_doubled(found.toPandas(), scorer)


def test_workers_have_the_threads_they_are_given(frame: Any, folder: Path) -> None:
    scorer = BatchScorer(str(folder), keep=["row"], threads=1)

    def threads(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        torch.set_num_threads(2)
        for batch in batches:
            list(scorer.each([batch]))
            yield pd.DataFrame({"threads": [torch.get_num_threads()]})

    assert {row.threads for row in frame.mapInPandas(threads, "threads long").collect()} == {1}


def test_another_artifact_in_its_place_is_an_error_and_no_answer(
    frame: Any, folder: Path, make: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(folder, tmp_path / "ranker"))
    scorer = BatchScorer(str(home), keep=["row"])
    described = schema(scorer, frame.schema)
    torch.manual_seed(1)
    make(Ranker().eval(), tensors(rows(16)), backends=[], batch_sizes=(1,)).save(home)
    with pytest.raises(Exception, match="another than this scorer was made for"):
        frame.limit(3).mapInPandas(scorer.each, described).collect()


def test_columns_to_keep_have_to_be_there(frame: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="no column 'id' to keep"):
        schema(BatchScorer(str(folder), keep=["id"]), frame.schema)
