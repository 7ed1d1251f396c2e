"""Warnings: bad news first, and none where there is nothing to warn of."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastrec.calibration import check_calibration
from fastrec.capture import capture
from fastrec.journal import Journal
from fastrec.losses import Accuracy
from fastrec.measure import Loss
from fastrec.program import Program
from fastrec.render.alerts import alerts
from fastrec.report import BUDGET, Report, Step, Tables
from fastrec.techniques import QuantizeLinears, Skip
from tests.reports import improved, segmented, unchanged


def said(report: Report) -> list[tuple[str, str]]:
    return [(one.title, one.tone) for one in alerts(report)]


def test_everything_that_went_wrong_is_said() -> None:
    small = Accuracy.of(Loss("auc", 0.8, 0.8, 0.0, 1e-3, 900, 400), 2e-4)
    report = replace(
        segmented(auc=8e-4),
        steps=(Step("quantize_tables", False, (), 0.1),),
        skipped=(Skip("quantize_tables", BUDGET, "lost 0.001"), Skip("fold norms", "bn", "no")),
        tables=Tables(1000, 900),
        accuracy=(small, Accuracy.of(Loss("auc", 0.8, 0.78, 0.02, 1e-3, 900, 400), 2e-4)),
    )
    assert report.fidelity is not None
    report = replace(report, fidelity=replace(report.fidelity, nonfinite_alike=False))
    assert said(report) == [
        ("Budget refused", "bad"), ("Budget missed", "bad"), ("Slower", "bad"), ("Not certifiable", "bad"),
        ("Exceeded", "bad"), ("Segments", "bad"), ("Answers", "bad"), ("Note", "note"),
    ]  # fmt: skip
    assert "needs about" in alerts(report)[3].text and "popularity" in alerts(report)[5].text


def test_there_is_nothing_to_say_where_nothing_is_amiss() -> None:
    assert said(unchanged()) == []
    assert said(replace(improved(), sizes=improved().sizes[:4])) == [("Note", "note")]


def test_names_are_cleaned_and_bounded() -> None:
    (one,) = alerts(replace(unchanged(), notes=("a\0\n" + "x" * 10_000,)))
    assert "\0" not in one.text and len(one.text) <= 400


def test_a_thin_calibration_is_called_so() -> None:
    work = Journal(0.0, 60.0)
    program = capture(Program.read(torch.nn.Linear(4, 2).eval(), torch.randn(6, 4)))
    check_calibration(work, program, [[torch.randn(30, 4)]], [QuantizeLinears()])
    assert said(replace(unchanged(), notes=(*work.notes, "one thread"))) == [
        ("Thin calibration", "note"),
        ("Note", "note"),
    ]
