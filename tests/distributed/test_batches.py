"""Rows scored in this process, by what engines call as well."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from fastrec import ArtifactError, ArtifactNotFoundError, CompressedModel, ForkSafetyError, InputError, load
from fastrec.distributed import scoring
from fastrec.distributed.batches import BatchScorer
from fastrec.distributed.tables import column

from .conftest import BAD, USERS, Ranker, requests, rows, spoilt, tensors

NAMES = ["score_ctr", "score_value"]


def arrow(table: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(list(x), from_pandas=False) for name, x in table.items()})


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "arrays": lambda table: table,
    "pandas": lambda table: pd.DataFrame({name: list(x) for name, x in table.items()}),
    "arrow": arrow,
}


def expected(folder: Path, table: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The model's own answers to all rows in one call."""
    answer = load(folder)(**tensors(table))
    return [answer["ctr"].numpy(), answer["value"].numpy()]


def scores(table: Any, names: list[str] = NAMES) -> list[np.ndarray]:
    return [np.stack(list(column(table, name)[0])) for name in names]


def reasons(table: Any) -> list[str | None]:
    return list(column(table, "reason")[0])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_table_gives_the_models_own_bits(form: str, folder: Path) -> None:
    table = rows(300)
    found = BatchScorer(str(folder)).score(FORMS[form](table), progress=False)
    for score, answer in zip(scores(found.table), expected(folder, table), strict=True):
        np.testing.assert_array_equal(score, answer)
        assert score.dtype == np.float32
    assert reasons(found.table) == [None] * 300 and found.rows == 300 and not found.bad
    assert np.asarray(column(found.table, "row")[0]).tolist() == list(range(300))


@pytest.mark.parametrize("form", ["arrays", "pandas"])
def test_bad_rows_are_set_aside_and_the_others_are_as_without_them(form: str, folder: Path) -> None:
    table = rows(40)
    found = BatchScorer(str(folder)).score(FORMS[form](spoilt(table)), progress=False)
    good = [row for row in range(40) if row not in BAD]
    answers = expected(folder, {name: x[good] for name, x in table.items()})
    for score, answer in zip(scores(found.table), answers, strict=True):
        np.testing.assert_array_equal(score[good], answer)
        assert np.isnan(score[list(BAD)]).all()
    said = reasons(found.table)
    assert {row: text for row, text in enumerate(said) if text is None}.keys() == set(good)
    assert all(f"feature {name!r}" in str(said[row]) for row, name in BAD.items())
    assert (
        said[3]
        == f"feature 'ids', position 0: got id {USERS}, expected 0 <= id < {USERS}. Map unseen ids to a row of the table before the call."
    )
    assert said[5] == "feature 'history': got 3 numbers, expected 4"
    assert found.bad == {"ids": 1, "history": 3, "price": 2}


def test_nulls_of_arrow_are_set_aside(folder: Path) -> None:
    table = {name: list(x) for name, x in rows(6).items()}
    table["price"][2] = None
    table["history"][4] = None
    found = BatchScorer(str(folder), keep=())(arrow(table))
    assert found.column_names == [*NAMES, "reason"]
    assert [row for row, text in enumerate(reasons(found)) if text] == [2, 4]


def test_all_rows_are_bad_or_there_are_none(folder: Path) -> None:
    scorer, table = BatchScorer(str(folder)), rows(3)
    table["ids"][:] = -1
    found = scorer(table)
    assert np.isnan(found["score_ctr"]).all() and all(reasons(found))
    empty = scorer.score({name: x[:0] for name, x in table.items()}, progress=False)
    assert empty.rows == 0 and empty.table["score_value"].shape == (0, 2)


def test_rows_are_scored_in_calls_of_as_many_as_asked_for(folder: Path) -> None:
    table = rows(50)
    scorer = BatchScorer(str(folder), rows=16, output="p", keep=["row"])
    found = scorer.score(table, batch=20, progress=False).table
    assert list(found) == ["row", "p_ctr", "p_value", "reason"]
    # 16 + 4, 16 + 4, 10: as the model is called with just these rows.
    for start, stop in [(0, 16), (16, 20), (20, 36), (36, 40), (40, 50)]:
        answer = expected(folder, {name: x[start:stop] for name, x in table.items()})[0]
        np.testing.assert_array_equal(found["p_ctr"][start:stop], answer)
    streamed = list(
        scorer.each([{n: x[:20] for n, x in table.items()}, {n: x[20:40] for n, x in table.items()}])
    )
    np.testing.assert_array_equal(np.concatenate([one["p_ctr"] for one in streamed]), found["p_ctr"][:40])


def test_few_bad_rows_cost_few_checks_and_one_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(1000)
    scorer = BatchScorer(str(folder))
    opened = scorer.scoring()
    calls: list[int] = []
    forward = CompressedModel.forward

    def counted(self: CompressedModel, **given: Tensor) -> Any:
        calls.append(len(given["ids"]))
        return forward(self, **given)

    monkeypatch.setattr(CompressedModel, "forward", counted)
    checks: list[int] = []
    checked = scoring.Scoring._checked
    monkeypatch.setattr(
        scoring.Scoring,
        "_checked",
        lambda self, flat, some: (checks.append(len(some)), checked(self, flat, some)),
    )
    scorer(table)
    assert (calls, checks) == ([1000], [])
    table["ids"][[5, 500]] = USERS
    scorer(table)
    assert calls[1:] == [1000, 998] and len(checks) <= 7
    assert scorer.scoring() is opened


def test_rows_of_many_requests_are_a_call_for_each(by_request: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = requests(7, 12)
    scorer, model = BatchScorer(str(by_request), keep=["user"]), load(by_request)
    calls: list[int] = []
    forward = CompressedModel.forward

    def counted(self: CompressedModel, **given: Tensor) -> Any:
        calls.append(len(given["item"]))
        return forward(self, **given)

    order = np.random.default_rng(0).permutation(84)
    for chosen in (np.arange(84), order):
        given = {name: x[chosen] for name, x in table.items()}
        with monkeypatch.context() as patch:
            patch.setattr(CompressedModel, "forward", counted)
            found = scorer(given)
        assert calls == [12] * 7
        calls.clear()
        for user in dict.fromkeys(given["user"].tolist()):
            mine = given["user"] == user
            answer = model(**{name: torch.as_tensor(x[mine]) for name, x in given.items()})
            np.testing.assert_array_equal(found["score"][mine], answer.numpy())


def test_a_bad_request_is_the_reason_of_all_its_rows(
    by_request: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = requests(3, 200)
    table["user"][200:400] = USERS + 1
    table["item"][7] = -3
    checks: list[int] = []
    checked = scoring.Scoring._checked
    monkeypatch.setattr(
        scoring.Scoring,
        "_checked",
        lambda self, flat, some: (checks.append(len(some)), checked(self, flat, some)),
    )
    found = BatchScorer(str(by_request)).score(table, progress=False)
    assert found.bad == {"user": 200, "item": 1}
    assert len(set(reasons(found.table)[200:400])) == 1
    assert len(checks) <= 6


class Wide(nn.Module):
    """Answers that are whole numbers, in half precision, not row by row, and not numbers at some rows."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x.argmax(1), x.half()[:, 0], x.new_ones(2), torch.log(x[:, 0])


def test_answers_of_every_kind(make: Callable[..., CompressedModel], tmp_path: Path) -> None:
    make(Wide(), torch.rand(16, 3), batch_sizes=(1,)).save(tmp_path / "wide")
    x = np.random.default_rng(0).random((10, 3)).astype(np.float32)
    x[4, 0], x[6, 1] = -1, np.inf
    scorer = BatchScorer(str(tmp_path / "wide"))
    assert [(one.name, one.dtype.name) for one in scorer.outputs] == [
        ("score_0", "float64"),
        ("score_1", "float32"),
        ("score_3", "float32"),
    ]
    found = scorer.score({"x": x}, progress=False)
    good = [row for row in range(10) if row != 6]
    np.testing.assert_array_equal(found.table["score_0"][good], x[good].argmax(1))
    np.testing.assert_array_equal(
        found.table["score_1"][good], x[good, 0].astype(np.float16).astype(np.float32)
    )
    assert found.table["reason"][4] == "score_3 is not a number" and found.bad == {"": 1, "x": 1}


class Logs(nn.Module):
    """Two answers, each of a number of its own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.log(x[:, 0]), torch.log(x[:, 1])


def test_no_answer_that_is_no_number_is_without_a_reason(
    make: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    make(Logs(), torch.rand(16, 2), batch_sizes=(1,)).save(tmp_path / "logs")
    x = np.ones((4, 2), np.float32)
    x[1, 0] = x[2, 1] = -1
    found = BatchScorer(str(tmp_path / "logs")).score({"x": x}, progress=False)
    assert reasons(found.table) == [None, "score_0 is not a number", "score_1 is not a number", None]


class Mixing(nn.Module):
    """Each row against the mean of all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).sum(1)


def test_answers_that_are_not_each_a_rows_own_are_refused(
    make: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    make(Mixing(), torch.rand(16, 3), batch_sizes=(1,)).save(tmp_path / "mixing")
    with pytest.raises(InputError, match="not each a row's own"):
        BatchScorer(str(tmp_path / "mixing")).score({"x": np.zeros((2, 3))}, progress=False)


def test_rows_that_the_model_itself_refuses_are_found_by_halves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CompressedModel.forward

    def picky(self: CompressedModel, **given: Tensor) -> Any:
        if bool((given["price"] == 7).any()):
            raise RuntimeError("seven")
        return forward(self, **given)

    monkeypatch.setattr(CompressedModel, "forward", picky)
    table = rows(100)
    table["price"][[20, 21, 90]] = 7
    found = BatchScorer(str(folder)).score(table, progress=False)
    assert {row for row, text in enumerate(reasons(found.table)) if text == "RuntimeError: seven"} == {
        20,
        21,
        90,
    }


def test_what_fails_for_every_row_is_no_rows_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: CompressedModel, **given: Tensor) -> Any:
        raise RuntimeError("no device")

    monkeypatch.setattr(CompressedModel, "forward", broken)
    with pytest.raises(RuntimeError, match="no device"):
        BatchScorer(str(folder))(rows(20))


@pytest.mark.parametrize("batch", [0, -1, 2.5, True])
def test_a_number_of_rows_is_a_whole_one(folder: Path, batch: Any) -> None:
    with pytest.raises(InputError, match="batch: got"):
        BatchScorer(str(folder)).score(rows(3), batch=batch)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"folder": None}, "folder takes the path of an artifact, got a NoneType"),
        ({"folder": nn.Identity()}, "got a Identity: save the model into one first"),
        ({"keep": "row"}, r"keep takes names of columns, got a str: keep=\('row',\)"),
        ({"keep": 3}, r"keep takes names of columns, got a int, as \('id',\)"),
        ({"columns": ["user"]}, r"columns takes a mapping .*\{'user': 'user_id'\}, got a list"),
        ({"columns": {"ids": 3}}, "columns: feature 'ids' takes a name, or one for each entry.*got 3"),
    ],
)
def test_settings_of_another_kind_are_refused(folder: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BatchScorer(**{"folder": str(folder), **wrong})


@pytest.mark.parametrize(
    "table", [{}, pd.DataFrame(), pd.DataFrame(index=range(3)), pa.table({})], ids=lambda t: type(t).__name__
)
def test_a_table_without_columns_is_refused(table: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="the table has no columns, expected ids, history, price"):
        BatchScorer(str(folder)).score(table, progress=False)


@pytest.mark.parametrize("form", ["pandas", "arrow"])
def test_columns_of_one_name_are_refused_where_they_are_read_or_kept(form: str, folder: Path) -> None:
    def twice(name: str) -> Any:
        table = FORMS[form](rows(5))
        if form == "pandas":
            return pd.concat([table, table[[name]]], axis=1)
        return table.append_column(name, table.column(name))

    scorer = BatchScorer(str(folder))
    with pytest.raises(InputError, match="2 columns 'price', and feature 'price' reads one") as caught:
        scorer.score(twice("price"), progress=False)
    assert caught.value.feature == "price"
    with pytest.raises(InputError, match="2 columns 'row': rename them, or name those to keep"):
        scorer.score(twice("row"), progress=False)
    found = BatchScorer(str(folder), keep=("price",)).score(twice("row"), progress=False).table
    assert list(reasons(found)) == [None] * 5


def test_what_fails_whichever_rows_there_are_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CompressedModel.forward

    def large(self: CompressedModel, **given: Tensor) -> Any:
        if len(given["price"]) > 50:
            raise RuntimeError("no room")
        return forward(self, **given)

    monkeypatch.setattr(CompressedModel, "forward", large)
    with pytest.raises(RuntimeError, match="no room"):
        BatchScorer(str(folder))(rows(100))


def test_a_scorer_is_a_path_and_a_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    scorer = BatchScorer("ranker", columns={"ids": ("user", "item")}, keep=["row"])
    data = pickle.dumps(scorer)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again == scorer == BatchScorer(**scorer.settings) and again.digest == load(folder).digest
    table = rows(5)
    table |= {"user": table["ids"][:, 0], "item": table.pop("ids")[:, 1]}
    np.testing.assert_array_equal(again(table)["score_ctr"], expected(folder, rows(5))[0])
    with pytest.raises(ArtifactNotFoundError):
        BatchScorer("ranker")
    with pytest.raises(InputError, match="rows: got 0"):
        BatchScorer(str(folder), rows=0)


def test_an_artifact_that_was_replaced_is_named_and_one_that_is_open_serves_on(
    folder: Path, make: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(folder, tmp_path / "ranker"))
    opened, other = BatchScorer(str(home), output="opened"), BatchScorer(str(home), output="other")
    before = opened(rows(9))
    torch.manual_seed(1)
    make(Ranker().eval(), tensors(rows(16)), backends=[], batch_sizes=(1,)).save(home)
    np.testing.assert_array_equal(opened(rows(9))["opened_ctr"], before["opened_ctr"])
    with pytest.raises(ArtifactError, match="another than this scorer was made for") as caught:
        other(rows(9))
    assert caught.value.path == str(home)
    assert not np.array_equal(BatchScorer(str(home), output="new")(rows(9))["new_ctr"], before["opened_ctr"])


def test_a_forked_process_says_so_and_sets_no_row_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = BatchScorer(str(folder), output="forked")
    scorer(rows(3))
    monkeypatch.setattr(scorer.scoring().model, "_threads", 2)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ForkSafetyError):
        scorer(rows(3))


def test_threads_of_the_callers_own_process_stay_what_they_are(folder: Path) -> None:
    torch.set_num_threads(2)
    try:
        BatchScorer(str(folder), threads=1, output="mine")(rows(5))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_no_engine_and_no_library_of_tables_is_imported(folder: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from fastrec.distributed.batches import BatchScorer\n"
        "import fastrec.distributed.spark\n"
        "scorer = BatchScorer(sys.argv[1])\n"
        "scorer({'ids': np.zeros((2, 2), int), 'history': np.zeros((2, 4), int), 'price': np.zeros(2)})\n"
        "print(*({'ray', 'pyspark', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert done.stdout.strip() == "", done.stderr
