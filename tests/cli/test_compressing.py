"""`fastrec compress`: options as arguments, exit codes, and a folder that serves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastrec import Budget, CompressedModel, Fuse, Recipe, load, pipeline
from fastrec.backends import Eager, OnnxRuntime
from fastrec.cli import compressing
from fastrec.measure import fidelity
from tests.artifact.conftest import batch, ranker

from .conftest import Result, Saved

Run = Callable[..., Result]


@pytest.fixture
def given(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `compress` was called with; it gives the shared model with the status that is put in here, and where it is saved is noted."""
    found: dict[str, Any] = {}

    def compress(model: Any, example: Any, **settings: Any) -> Any:
        fast = copy.copy(saved.fast)
        fast.report = replace(fast.report, status=found.pop("status", "improved"))
        found.update(settings, model=model, batch=example)
        return fast

    monkeypatch.setattr(compressing, "compress", compress)
    monkeypatch.setattr(CompressedModel, "save", lambda fast, folder: found.update(folder=folder))
    monkeypatch.setattr(compressing, "write_html", lambda report, path: found.update(page=path))
    return found


def test_a_model_is_compressed_into_a_folder(
    fastrec: Run, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "share", lambda *_: 0.05)
    (mine / "recipe.json").write_text(Recipe((Fuse(),)).to_json())
    done = fastrec(
        "compress", "callers_own:build", "--out", "ranker", "--batch-sizes", "1,16", "--backends", "onnxruntime",
        "--seconds", "2", "--recipe", "recipe.json", "--p95-ms", "0.00001", "--json",
    )  # fmt: skip
    # No call is as quick as that: what serves is saved all the same.
    assert (done.code, done.json["status"], done.json["exit_code"]) == (1, "budget_missed", 1)
    assert "the module is read\nbuilt\n" in done.err
    again = load("ranker")
    assert again.report.status == "budget_missed"
    assert json.loads(again.report.to_json()) == done.json["report"]
    assert fidelity([ranker()(**batch(9)).detach()], [again(**batch(9))]).exact


def test_options_are_arguments(fastrec: Run, mine: Path, given: dict[str, Any]) -> None:
    (mine / "recipe.json").write_text(Recipe((Fuse(),)).to_json())
    done = fastrec(
        "compress", "callers_own:build", "--out", "x", "--budget", "auc=0.0002", "--budget", "logloss=0.001",
        "--segments", "auc=0.002", "--bytes", "5000", "--p95-ms", "2.5", "--minimize", "bytes",
        "--recipe", "recipe.json", "--resume", "trials.jsonl", "--request-features", "user, price",
        "--batch-sizes", "1,100", "--backends", "eager,onnxruntime", "--seconds", "9", "--html", "page.html",
    )  # fmt: skip
    assert done.code == 0 and done.out.endswith("saved in x\n")
    assert given["budget"] == Budget({"auc": 0.0002, "logloss": 0.001}, 5000, {"auc": 0.002}, 2.5, "bytes")
    assert given["recipe"] == Recipe((Fuse(),)) and given["resume"] == Path("trials.jsonl")
    assert given["request_features"] == ["user", "price"] and given["batch_sizes"] == (1, 100)
    assert given["backends"] == [Eager(), OnnxRuntime()] and given["seconds"] == 9.0
    assert given["folder"] == Path("x") and given["page"] == Path("page.html")


def test_without_options_it_is_as_the_function_says(fastrec: Run, mine: Path, given: dict[str, Any]) -> None:
    assert fastrec("compress", "callers_own:build", "--out", "x").code == 0
    assert (
        set(given) == {"model", "batch", "budget", "request_features", "folder"} and given["budget"] is None
    )
    given.clear()
    assert fastrec("compress", "callers_own:pair", "--out", "x").code == 0
    assert set(given) == {"model", "batch", "budget", "folder"}


@pytest.mark.parametrize(
    ("status", "code"), [("improved", 0), ("unchanged", 0), ("budget_missed", 1), ("not_certifiable", 1)]
)
def test_the_code_says_what_became_of_it(
    fastrec: Run, mine: Path, given: dict[str, Any], status: str, code: int
) -> None:
    given["status"] = status
    done = fastrec("compress", "callers_own:pair", "--out", "x", "--json")
    assert (done.code, done.json["status"]) == (code, status)
    assert given["folder"] == Path("x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["callers_own:fails"], "callers_own:fails fails: RuntimeError: there is no file of weights"),
        (["callers_own:strange"], "gives modle, which compress does not take"),
        (["callers_own:half"], "gives no batch"),
        (["callers_own:nothing"], "got a int"),
        (["callers_own:NUMBER"], "is a int, expected a function"),
        (["callers_own:missing"], "has no attribute 'missing'"),
        (["not_there:build"], "No module named 'not_there'"),
        (["callers_own.py"], "expected a function as pkg.module:build"),
        (["os:system('true')"], "expected a function as pkg.module:build"),
        (["callers_own:pair", "--budget", "auc"], "--budget takes a metric and a number"),
        (["callers_own:pair", "--budget", "auc=0.1"], "needs evaluate="),
        (["callers_own:pair", "--batch-sizes", "1,x"], "--batch-sizes takes whole numbers"),
        (["callers_own:pair", "--backends", "gpu"], "no backend 'gpu'"),
        (["callers_own:pair", "--p95-ms", "1", "--minimize", "size"], "--minimize takes latency or bytes"),
        (["callers_own:pair", "--recipe", "none.json"], "--recipe none.json cannot be read"),
        (["callers_own:pair", "--request-features", "user,,x"], "--request-features takes names"),
    ],
)
def test_calls_that_do_not_fit_are_one_line(fastrec: Run, mine: Path, options: list[str], says: str) -> None:
    done = fastrec("compress", *options, "--out", "x", "--json")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("fastrec: InputError: ") and says in last
    assert "Traceback" not in done.err
    assert done.json["error"] == {"type": "InputError", "message": last.removeprefix("fastrec: InputError: ")}
    assert not (mine / "x").exists()
