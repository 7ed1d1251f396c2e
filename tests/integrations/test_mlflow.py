"""Compressed models in runs of MLflow."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastrec
from fastrec.errors import InputError, PackageMissing
from fastrec.integrations.mlflow import log, metrics, params
from fastrec.losses import Accuracy
from fastrec.recipe import Recipe
from fastrec.report import Report
from fastrec.techniques import Fuse, QuantizeTables
from tests.reports import improved, unchanged

from .conftest import Saved, batch


def test_a_run_has_what_was_measured_and_gives_the_model_back(
    mlflow: Any, saved: Saved, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        uri = log(saved.fast, "int8")
    assert uri == f"runs:/{run.info.run_id}/int8/model"
    data, report = mlflow.get_run(run.info.run_id).data, saved.fast.report
    assert data.metrics == pytest.approx(metrics(report, "int8"))
    assert data.params == params(report, "int8")
    files = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/int8", dst_path=str(tmp_path)))
    assert Report.from_json((files / "report.json").read_text("utf-8")) == report
    assert report.headline in (files / "report.html").read_text("utf-8")
    again = fastrec.load(mlflow.artifacts.download_artifacts(uri))
    for rows in (1, 7, 16):
        assert again(**batch(rows)).equal(saved.fast(**batch(rows)))


def test_it_goes_on_being_saved_where_it_was(mlflow: Any, saved: Saved) -> None:
    with mlflow.start_run():
        log(saved.fast)
    again = pickle.loads(pickle.dumps(saved.fast))
    assert again(**batch(5)).equal(saved.fast(**batch(5)))


def test_two_models_of_one_run_have_names(mlflow: Any, saved: Saved) -> None:
    with mlflow.start_run() as run:
        log(saved.fast, "a")
        log(saved.fast, "b")
    names = {name.partition("/")[0] for name in mlflow.get_run(run.info.run_id).data.metrics}
    assert names == {"a", "b"}


def test_nothing_is_logged_of_what_cannot_be_saved(
    mlflow: Any, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("it has no form")

    monkeypatch.setattr(fastrec.CompressedModel, "save", refuse)
    with mlflow.start_run() as run, pytest.raises(InputError, match="no form"):
        log(saved.fast)
    data = mlflow.get_run(run.info.run_id).data
    assert not data.metrics and not data.params


def accuracy(metric: str, upper: float | None = 2e-4) -> Accuracy:
    return Accuracy(metric, 0.8, 0.7999, 1e-4, upper, 2e-4, "certified", 9000, None)


def test_metrics_are_the_numbers_of_the_report() -> None:
    report = replace(improved(), accuracy=(accuracy("auc"), accuracy("ndcg@10", None)))
    found = metrics(report, "m")
    size = report.sizes[2]
    expected = {
        "speedup/100": size.speedup.value,
        "speedup_low/100": size.speedup.low,
        "speedup_high/100": size.speedup.high,
        "p50_ms/100": size.after.p50 * 1e3,
        "p95_ms/100": size.after.p95 * 1e3,
        "p50_ms_before/100": size.before.p50 * 1e3,
        "p95_ms_before/100": size.before.p95 * 1e3,
        "before/auc": 0.8,
        "after/auc": 0.7999,
        "loss/auc": 1e-4,
        "loss_upper/auc": 2e-4,
        "loss/ndcg_at_10": 1e-4,
        "bytes/before": 166_400_000,
        "bytes/after": 166_506_496,
        "bytes/sessions": 12_345_678,
        "bytes/tables": 900,
    }
    assert {name: found[f"m/{name}"] for name in expected} == expected
    assert len(found) == 7 * len(report.sizes) + 7 + 4 and "m/loss_upper/ndcg_at_10" not in found


def test_a_report_without_times_has_bytes() -> None:
    assert set(metrics(replace(unchanged(), tables=None))) == {
        f"fastrec/bytes/{name}" for name in ("before", "after", "sessions")
    }


def test_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="hit_at_5"):
        metrics(replace(improved(), accuracy=(accuracy("hit@5"), accuracy("hit_at_5"))))


def test_parameters_are_the_recipe_and_what_became_of_it() -> None:
    recipe = Recipe((Fuse(), QuantizeTables()))
    found = params(replace(improved(), recipe=recipe), "m")
    assert found["m/status"] == "improved" and found["m/techniques"] == "fuse, quantize_tables"
    assert Recipe.from_json(found["m/recipe"]) == recipe
    json.loads(found["m/recipe"])


def test_a_recipe_longer_than_a_parameter_is_not_cut() -> None:
    long = Recipe((QuantizeTables(only=tuple(f"table_{i}" for i in range(900))),))
    found = params(replace(improved(), recipe=long))
    assert "fastrec/recipe" not in found and found["fastrec/techniques"] == "quantize_tables"


def test_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, saved: Saved) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(PackageMissing, match=r"mlflow.*pip install 'fastrec\[mlflow\]'"):
        log(saved.fast)
