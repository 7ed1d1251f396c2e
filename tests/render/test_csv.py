"""Reports as CSV: read back by a reader of CSV, numbers as numbers, texts that nothing evaluates."""

from __future__ import annotations

import csv as standard
import io
from dataclasses import replace

import pytest

from fastrec.losses import Accuracy
from fastrec.measure import Breakdown, Loss, Part
from fastrec.render import csv
from fastrec.report import Report, Trial
from tests.reports import improved, segmented, size, unchanged


def read(text: str) -> list[dict[str, str]]:
    return list(standard.DictReader(io.StringIO(text, newline="")))


def full(name: str = "onnxruntime") -> Report:
    loss = Loss(name, 0.8, 0.7999, 1e-4, 2e-5, 9000, 4000)
    return replace(
        segmented(auc=8e-4),
        sizes=(size(100, 1e-3, 4e-4, name),),
        trials=(Trial(100, name, 3e-4, 3.3, name), Trial(0, name, None, None, name)),
        accuracy=(Accuracy.of(loss, 2e-4), Accuracy.of(replace(loss, value=-1e-3), 2e-4)),
        breakdown=(Breakdown(name, 100, 4e-4, (Part("dense", 3e-4, 2), Part("framework", 1e-4, 9)), 30),),
    )


def test_there_is_a_text_for_each_table_that_has_rows() -> None:
    assert list(csv(full())) == ["latency", "accuracy", "segments", "breakdown", "trials"]
    assert list(csv(improved())) == ["latency", "trials"] and csv(unchanged()) == {}


def test_numbers_are_those_of_the_report() -> None:
    made = csv(full())
    (row,) = read(made["latency"])
    assert (float(row["before_p50_seconds"]), float(row["speedup"])) == (1e-3, 1e-3 / 4e-4)
    assert row["session"] == "onnxruntime" and row["verdict"] == "faster" and row["batch_rows"] == "100"
    lost = [float(row["lost"]) for row in read(made["accuracy"])]
    assert lost == [1e-4, -1e-3], "a number below zero is a number"
    dense = read(made["breakdown"])[0]
    assert (dense["part"], float(dense["ceiling"]), dense["calls"]) == ("dense", pytest.approx(4.0), "2")
    assert [row["p50_seconds"] for row in read(made["trials"])] == ["0.0003", ""]
    assert len(read(made["segments"])) == 11


def test_lines_end_as_the_standard_says_and_have_equal_cells() -> None:
    for text in csv(full('a,"b"\nc')).values():
        assert text.endswith("\r\n") and text.count("\n") == text.count("\r\n")
        lines = list(standard.reader(io.StringIO(text, newline="")))
        assert len({len(line) for line in lines}) == 1
    assert read(csv(full('a,"b"\nc'))["trials"])[0]["session"] == 'a,"b" c'


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "\0=1"])
def test_what_a_spreadsheet_would_evaluate_is_text(name: str) -> None:
    made = csv(full(name))
    cells = [
        row[key]
        for text in made.values()
        for row in read(text)
        for key in ("session", "metric", "of", "reason")
        if key in row
    ]
    given = [cell for cell in cells if cell != "auc"]
    assert len(given) == 9 and all(cell.startswith("'") for cell in given)


@pytest.mark.parametrize("name", ["x" * 10_000, "\u202eevil", "a\0b", "\u05d0\u05d1 \U0001f3ac"])
def test_names_are_bounded_and_clean(name: str) -> None:
    text = "".join(csv(full(name)).values())
    assert len(text) < 20_000 and not set("\0\u202e") & set(text)
