"""Reports: JSON there and back, and the short form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from fastrec.errors import InputError
from fastrec.measure import Breakdown, Part, Ratio
from fastrec.plan import as_original
from fastrec.render import markdown
from fastrec.report import Report, Step
from fastrec.techniques import Change, Skip
from tests.reports import improved, segmented, size, unchanged


@pytest.mark.parametrize("make", [improved, unchanged, segmented])
def test_json_round_trip(make: Callable[[], Report]) -> None:
    report = make()
    text = report.to_json()
    assert json.loads(text)["schema"] == 1
    assert Report.from_json(text) == report
    assert Report.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema=2), "report has schema 2"),
        (lambda d: d.pop("schema"), "report has schema None"),
        (lambda d: d.pop("memory"), r"report lacks \['memory'\]"),
        (lambda d: d.pop("recipe"), r"report lacks \['recipe'\]"),
        (lambda d: d.update(status="better"), r"report\.status"),
        (lambda d: d["sizes"][2]["before"].update(p50="fast"), r"report\.sizes\[2\]\.before\.p50"),
        (lambda d: d["steps"][0]["changes"][3].update(code="x"), r"report\.steps\[0\]\.changes\[3\]"),
        (
            lambda d: d["recipe"]["techniques"][0].update(name="x"),
            r"recipe\.techniques\[0\] has an unknown name",
        ),
        (lambda d: d["recipe"].update(schema=7), "recipe has schema 7"),
    ],
)
def test_damaged_json_is_refused_with_its_place(
    edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = json.loads(improved().to_json())
    edit(data)
    with pytest.raises(InputError, match=message):
        Report.from_json(json.dumps(data))


def test_numbers_that_are_not_finite_are_neither_written_nor_read() -> None:
    with pytest.raises(InputError, match=r"report\.seconds is nan"):
        replace(improved(), seconds=float("nan")).to_json()
    with pytest.raises(InputError, match="strict JSON"):
        Report.from_json(improved().to_json().replace("23.4", "NaN"))


def test_the_headline_tells_faster_equal_and_slower_apart() -> None:
    assert improved().headline == (
        "2.21 to 2.99x faster at 32, 100 and 500 rows; no measurable difference at 1 row; slower at 1,000 rows"
    )
    assert replace(improved(), sizes=(size(100, 2e-3, 1e-3),)).headline == "2.00x faster at 100 rows"
    assert replace(improved(), sizes=(size(1, 1e-3, 2e-3),)).headline == "Slower at 1 row"
    assert replace(improved(), sizes=()).headline == "Changed, and not timed"
    assert unchanged().headline.startswith("Unchanged")


def test_a_wide_interval_says_what_helps() -> None:
    unsure = replace(size(100, 2e-3, 1e-3), speedup=Ratio(2.0, 0.7, 3.1, 12))
    said = "0.700 to 3.10x at 100 rows is too wide an interval to tell: give more seconds"
    one = replace(improved(), sizes=(unsure,))
    assert one.headline == f"No measurable difference at 100 rows ({said})"
    assert "a wide interval: give more seconds" in markdown(one)
    kept = replace(improved(), status="unchanged", sizes=(as_original(unsure),))
    assert kept.headline.startswith("Unchanged: ") and kept.headline.endswith(f"({said})")
    assert Report.from_json(kept.to_json()) == kept


def test_rows_that_are_not_counted_are_not_said() -> None:
    one = replace(improved(), sizes=improved().sizes[1:2], trials=(), counted=False, p95_ms=0.1)
    assert one.headline == "2.99x faster at the example's shape"
    assert "205 us at the example's shape" in one.in_time
    shown = [unescape(text) for text in (str(one), markdown(one), one._repr_html_())]
    assert all("the example's" in text for text in shown)
    assert not any(words in text for text in shown for words in (" 32 ", "at 32 rows", "1,000 rows"))


def test_print_gives_a_line_per_batch_size() -> None:
    lines = str(improved()).splitlines()
    assert lines[0] == improved().headline
    assert lines[4].split() == [
        "100",
        "1.13",
        "ms",
        "402",
        "us",
        "2.81x",
        "2.78",
        "to",
        "2.84x",
        "400",
        "onnxruntime",
    ]
    assert len({line.rindex("  ") for line in lines[1:7]}) == 1  # the columns stand below each other
    assert "6.0e-08" in lines[7] and lines[9] == "note: one thread" and "28 changes, 3 skipped" in lines[10]
    assert lines[8] == "the tables take 900 B, 1,000 B are allowed" and improved().met
    assert len(lines) == 11
    assert max(map(len, lines[1:])) <= 100


def test_print_gives_the_worst_segments_of_each_grouping() -> None:
    lines = str(segmented(auc=5e-4)).splitlines()
    assert lines[8].startswith(
        "  auc of popularity 10: 0.80000 before, 0.79900 after, lost 0.001, at most 0.0013"
    )
    assert "0.0005 allowed: not certifiable" in lines[8] and "and 8 segments more" in lines[11]
    assert len(lines) == 15


def test_reports_that_were_written_without_segments_are_read() -> None:
    data = json.loads(improved().to_json())
    assert data.pop("segments") == []
    assert Report.from_json(json.dumps(data)) == improved()


def test_where_the_time_goes_travels_and_may_be_missing() -> None:
    parts = (Part("dense", 3e-4, 2), Part("framework", 1e-4, 9))
    report = replace(improved(), breakdown=(Breakdown("original", 100, 4e-4, parts, 30),))
    assert Report.from_json(report.to_json()) == report
    data = json.loads(report.to_json())
    assert data["breakdown"][0]["parts"][0] == {"kind": "dense", "seconds": 3e-4, "calls": 2}
    del data["breakdown"]
    assert Report.from_json(json.dumps(data)) == improved()
    data["breakdown"] = [
        {
            "label": "x",
            "rows": 1,
            "seconds": 1,
            "parts": [{"kind": "other", "seconds": 1, "calls": 1}],
            "n": 1,
        }
    ]
    with pytest.raises(InputError, match=r"report\.breakdown\[0\]\.parts\[0\]\.kind"):
        Report.from_json(json.dumps(data))


def test_notebooks_show_a_table_whose_names_are_inert() -> None:
    text = improved()._repr_html_()
    assert improved().headline in text and text.count("<tr>") == 6 and "<td>2.81x</td>" in text
    name = "<script>alert(1)</script>"
    hostile = replace(
        improved(), sizes=(size(1, 2e-3, 1e-3, session=name),), steps=(Step(name, False, (), 0.1),)
    )
    hostile = replace(hostile, skipped=(Skip(name, "budget", name),))
    assert "<script" not in hostile._repr_html_() and hostile._repr_html_().count("&lt;script&gt;") == 2
    assert "<table>" not in unchanged()._repr_html_()


def test_print_cleans_foreign_names() -> None:
    hostile = replace(improved(), sizes=(size(1, 2e-3, 1e-3, session="a\n\x1b[31mb" + "x" * 10_000),))
    assert "\x1b" not in str(hostile)
    assert len(str(hostile)) < 1000
    assert len(str(hostile).splitlines()) == 7


def test_what_differs_is_said() -> None:
    fidelity = improved().fidelity
    assert fidelity is not None
    same = replace(fidelity, identical=True)
    assert "bit for bit" in str(replace(improved(), fidelity=same))
    worse = replace(fidelity, differing=2, nonfinite_alike=False)
    text = str(replace(improved(), fidelity=worse))
    assert "2 integers differ" in text and "NaN or infinities in other places" in text


def test_reports_need_no_renderer() -> None:
    code = "import sys, fastrec.report; print([m for m in sys.modules if m == 'rich' or m.startswith('fastrec.render')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_cut_is_told_only_where_it_serves() -> None:
    lossy = Step("prune_neurons", False, (Change("prune neurons", "linear", "64 -> 16 units"),), 0.1)
    serving = replace(improved(), steps=(lossy,), notes=())
    assert "linear: 64 -> 16 units" in str(serving)
    sizes = tuple(replace(one, session="onnxruntime, exact") for one in serving.sizes)
    beside = replace(serving, sizes=sizes, notes=("nothing that the recipe approximates serves",))
    assert "64 -> 16 units" not in str(beside)
    assert "note: nothing that the recipe approximates serves" in str(beside)
