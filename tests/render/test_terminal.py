"""Reports in a terminal: everything said, within 80 columns, names inert."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fastrec.measure import Breakdown, Part
from fastrec.render import terminal
from fastrec.report import Report
from fastrec.techniques import Change, Skip
from tests.reports import improved, segmented, size, unchanged


def printed(report: Report, width: int = 80, *, colour: bool = False) -> str:
    file = io.StringIO()
    terminal(
        report,
        Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None),
    )
    return file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_it_fits_80_columns_with_one_line_per_value() -> None:
    lines = printed(improved()).splitlines()
    assert max(map(len, lines)) <= 80
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("100 "))
    assert lines[start].split() == [
        "100",
        "1.13",
        "ms",
        "±3.0",
        "%",
        "402",
        "us",
        "±3.0",
        "%",
        "2.81x",
        "400",
        "onnxruntime",
    ]
    assert lines[start + 1].split() == ["p95", "1.36", "ms", "p95", "482", "us", "2.78", "to", "2.84x"]


def test_it_says_everything() -> None:
    text = words(printed(improved(), 120))
    for part in (
        improved().headline,
        "slower 0.942x",
        "stack lookups 26 159 MiB model.emb.0",
        "nothing to do here",
        "exact, 1.24 s",
        "openvino - - EmbeddingBag with offsets is not supported",
        "fold batch norm 2 model.dice.bn a non-linear op stands between",
        "6.0e-08, 4.1e-07 of the outputs' spread, within float rounding (over 1,000 rows)",
        "100 % of scores keep their rank",
        "sessions hold 11.8 MiB beyond that",
        "AMD EPYC 9354, 2 of 64 cores, 1 thread",
        "took 23.4 s",
        "one thread",
    ):
        assert part in text


def test_an_unchanged_model_is_said_to_be_unchanged() -> None:
    text = printed(unchanged())
    assert text.startswith("Unchanged: nothing could be done, and the original goes on serving")
    assert "Latency" not in text and "What was not done" not in text


def test_slower_is_red_and_faster_green() -> None:
    text = printed(improved(), colour=True)
    assert "\x1b[1;31m  slower 0.942x" in text
    assert "\x1b[1;32m          2.99x" in text


@pytest.mark.parametrize(
    "name",
    ["[red]x[/red]", "[/]", "\x1b[31mx\x1b]0;title\x07", "a\nb\rc", "\u202eevil", "x" * 10_000, "🎬" * 300],
)
def test_names_are_printed_as_they_are_or_not_at_all(name: str) -> None:
    report = replace(
        improved(),
        sizes=(size(1, 2e-3, 1e-3, session=name),),
        steps=tuple(
            replace(s, technique=name, changes=(Change(name, name, name),)) for s in improved().steps
        ),
        skipped=(Skip(name, name, name),),
        notes=(name,),
    )
    text = printed(report)
    assert not set("\x1b\x07\r\u202e") & set(text)
    assert len(text) < 12_000
    assert name not in ("[red]x[/red]", "[/]") or text.count(name) >= 8


def test_long_lists_are_cut_and_say_so() -> None:
    report = replace(improved(), skipped=tuple(Skip("rule", f"site{i}", f"reason {i}") for i in range(25)))
    text = printed(report)
    assert "reason 19" in text and "reason 20" not in text
    assert "5 more reasons left out here" in text


def test_segments_stand_in_their_order_the_worst_marked() -> None:
    text = printed(segmented(auc=8e-4))
    assert max(map(len, text.splitlines())) <= 80
    assert "auc by popularity, 0.0008 allowed in each: 95 % bounds of the loss" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    start = lines.index("1 900 0.80000 0.79990 0.00010 0.00043 certified")
    assert lines[start + 3] == "4 900 0.80000 0.79960 0.00040 0.00073 certified"
    assert lines[start + 4] == "5 900 0.80000 0.79950 0.00050 0.00083 not certifiable"
    assert "needs about 1,083 rows" in lines[start + 5]
    assert lines[: lines.index("What was done")].count("worst") == 1
    assert lines[lines.index("worst") - 1].startswith("10 900 0.80000 0.79900 0.00100")
    assert "unseen 12 0.80000 0.50000 0.30000 0.46449 too few rows" in words(text)


def test_many_segments_are_cut_the_worst_first() -> None:
    text = words(printed(segmented(40)))
    assert text.index("39 900") < text.index("38 900")
    assert "20 segments left out here" in text and " 20 900 " in text and " 19 900 " not in text


def test_where_the_time_goes_is_a_table() -> None:
    parts = (Part("dense", 3e-4, 2), Part("framework", 1e-4, 9))
    found = Breakdown("original", 100, 4e-4, parts, 30)
    text = words(printed(replace(improved(), breakdown=(found,)), 120))
    assert "Where the time of one call goes at 100 rows" in text
    assert "dense 300 us 75.0 % 4.00x 2" in " ".join(text.split())


def test_narrow_terminals_fold_and_lose_nothing() -> None:
    text = printed(improved(), 40)
    assert max(map(len, text.splitlines())) <= 40
    assert "…" not in text
    # Folding moves characters to other lines; none may go missing.
    wide = printed(improved(), 120)
    assert all(text.count(c) == wide.count(c) for c in "0123456789±%.,")


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    terminal(unchanged())
    assert capsys.readouterr().out.startswith("Unchanged")
