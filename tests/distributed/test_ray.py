"""Batches scored by Ray Data, on two nodes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from fastrec import CompressedModel
from fastrec.distributed.batches import BatchScorer
from tests import pages

from .conftest import Ranker, rows, tensors
from .killing import BLOCK, BLOCKS, blocks, check_nothing_lost_or_doubled, end_once

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fastrec[ray]'")
pytest.importorskip("ray.data", reason="ray[data] is not installed: pip install 'fastrec[ray]'")
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes(importable: None) -> Iterator[None]:
    """Two nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
        try:
            cluster.add_node(**small)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_a_killed_worker_loses_and_doubles_nothing(nodes: None, folder: Path, tmp_path: Path) -> None:
    class Ending:
        """The scorer, in a process that ends once."""

        def __init__(self, settings: dict[str, Any], flag: str) -> None:
            self.scorer, self.flag = BatchScorer(**settings), flag

        def __call__(self, batch: pa.Table) -> pa.Table:
            end_once(batch.column("row").to_pylist(), self.flag)
            made = self.scorer(batch)
            node = ray.get_runtime_context().get_node_id()
            more = {"threads": torch.get_num_threads(), "node": node}
            for name, value in more.items():
                made = made.append_column(name, pa.array([value] * len(made)))
            return made

    scorer = BatchScorer(str(folder), keep=["row"])
    flag = tmp_path / "ended"
    found = ray.data.from_arrow(blocks()).map_batches(
        Ending, fn_constructor_args=(scorer.settings, str(flag)), batch_size=None, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    made = pa.concat_tables(ray.get(found.to_arrow_refs()))
    assert flag.exists()
    check_nothing_lost_or_doubled(made, scorer)
    assert set(made.column("threads").to_pylist()) == {1}
    assert len(set(made.column("node").to_pylist())) == 2


def test_the_scorer_is_an_actor_class_and_a_function(nodes: None, folder: Path) -> None:
    scorer, given = BatchScorer(str(folder), keep=["row"]), ray.data.from_arrow(blocks())
    for made in (
        given.map_batches(
            BatchScorer,
            fn_constructor_kwargs=scorer.settings,
            batch_size=None,
            batch_format="numpy",
            concurrency=1,
        ),
        given.map_batches(scorer, batch_size=None, batch_format="pandas"),
    ):
        check_nothing_lost_or_doubled(made.to_pandas(), scorer)


def test_the_text_of_the_page(nodes: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    names = pages.run("docs/scoring.md", "map_batches", tables=blocks())
    assert names["bad"] == 24 and names["scored"].count() == BLOCK * BLOCKS


def test_another_artifact_in_its_place_is_an_error_and_no_answer(
    nodes: None, folder: Path, make: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(folder, tmp_path / "ranker"))
    scorer = BatchScorer(str(home), keep=["row"])
    torch.manual_seed(1)
    make(Ranker().eval(), tensors(rows(16)), backends=[], batch_sizes=(1,)).save(home)
    run = ray.data.from_arrow(blocks()[:2]).map_batches(scorer, batch_size=None, batch_format="pyarrow")
    with pytest.raises(ray.exceptions.RayTaskError, match="another than this scorer was made for"):
        run.materialize()
