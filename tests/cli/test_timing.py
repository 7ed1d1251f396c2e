"""`fastrec benchmark` and `compare`: what is timed, and what counts as slower. No verdict here depends on a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrec import CompressedModel, load
from fastrec.cli import timing
from fastrec.measure import Samples
from tests.artifact.test_exports import compressed, wide

from .conftest import Result, Saved

Run = Callable[..., Result]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of each call by its name, in place of measured ones; each call is made twice."""
    seconds: dict[str, float] = {}

    def compared(rows: int, calls: Mapping[str, Any], batches: Any, *_: object, **__: object) -> Samples:
        for call in calls.values():
            answers = [call(batches(rows, index)) for index in range(2)]
            assert not (answers[0] == answers[1]).all() or rows == 1
        return Samples({name: np.full(40, seconds.get(name, 1e-3)) for name in calls})

    monkeypatch.setattr(timing, "compared", compared)
    return seconds


def test_a_saved_model_is_timed_really(fastrec: Run, saved: Saved) -> None:
    done = fastrec("benchmark", saved.folder, "--seconds", "0.1", "--batch-sizes", "3", "--json")
    (row,) = done.json["sizes"]
    assert done.code == 0 and row["rows"] == 3 and row["session"] in saved.fast.sources
    assert 0 < row["low"] <= row["p50"] <= row["high"] and row["calls"] >= 4
    assert done.json["machine"]["threads"] == 1


@pytest.mark.parametrize(("saved_takes", "code"), [(0.5e-3, 0), (0.999e-3, 0), (1.01e-3, 0), (1.1e-3, 1)])
def test_slower_than_the_original_is_a_failure(
    fastrec: Run, saved: Saved, mine: Path, clock: dict[str, float], saved_takes: float, code: int
) -> None:
    clock.update(saved=saved_takes, original=1e-3)
    done = fastrec("benchmark", saved.folder, "--model", "callers_own:pair", "--json")
    assert done.code == code
    assert [row["rows"] for row in done.json["sizes"]] == [1, 16]
    assert done.json["sizes"][0]["speedup"]["value"] == pytest.approx(1e-3 / saved_takes)


def test_where_the_original_serves_its_checks_are_no_failure(
    fastrec: Run, saved: Saved, mine: Path, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*given: Any, **settings: Any) -> CompressedModel:
        fast = load(*given, **settings)
        assert fast.plan is not None
        fast.plan = replace(fast.plan, names=(fast.plan.names[0], "original"))
        return fast

    monkeypatch.setattr(timing, "load", loaded)
    clock.update(saved=2e-3, original=1e-3)
    given = ("benchmark", saved.folder, "--model", "callers_own:pair", "--batch-sizes")
    done = fastrec(*given, "16")
    assert done.code == 0 and "at 16 rows the original serves" in done.err
    assert "16    2.00 ms  2.00 to 2.00 ms" in done.out and "0.500x" in done.out
    assert fastrec(*given, "1,16").code == 1


@pytest.mark.parametrize(
    ("b", "code", "verdict"), [(0.5e-3, 0, "faster"), (2e-3, 1, "slower"), (1e-3, 0, "no difference")]
)
def test_two_artifacts_take_turns(
    fastrec: Run, saved: Saved, tmp_path: Path, clock: dict[str, float], b: float, code: int, verdict: str
) -> None:
    clock.update(a=1e-3, b=b)
    done = fastrec("compare", saved.folder, saved.copy(tmp_path), "--json")
    assert done.code == code and done.json["paired"] and done.json["max_abs"] == 0.0
    assert [row["verdict"] for row in done.json["sizes"]] == [verdict] * 2
    assert done.json["a"]["bytes"] == done.json["b"]["bytes"] > 10_000
    assert "said" not in done.json["sizes"][0]
    assert "answers differ by up to 0\n" in fastrec("compare", saved.folder, tmp_path / "artifact").out


def test_two_artifacts_whose_interval_is_wide_ask_for_more_seconds(
    fastrec: Run, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.tile([1e-3, 4e-3], 3)
    monkeypatch.setattr(timing, "compared", lambda *_, **__: Samples({"a": wide, "b": wide[::-1]}))
    done = fastrec("compare", saved.folder, saved.copy(tmp_path), "--json")
    assert {row["verdict"] for row in done.json["sizes"]} == {"no difference"}
    assert "the interval is too wide to tell: give more --seconds" in done.err


def test_models_that_take_other_batches_are_not_compared(saved: Saved) -> None:
    other = compressed(_wide(), wide(12))
    with pytest.raises(timing.InputError, match="take different batches"):
        timing._in_turns(saved.fast, other, None, 1.0)


def _wide() -> Any:
    from tests.artifact.test_exports import Wide

    return Wide().eval()


def test_reports_are_compared_by_their_intervals(fastrec: Run, saved: Saved, tmp_path: Path) -> None:
    report = saved.fast.report

    def written(name: str, factor: float, **machine: Any) -> Path:
        def slowed(size: Any) -> Any:
            taken = size.after
            return replace(
                size,
                after=replace(
                    taken, p50=taken.p50 * factor, low=taken.low * factor, high=taken.high * factor
                ),
            )

        changed = replace(
            report, sizes=tuple(map(slowed, report.sizes)), machine=replace(report.machine, **machine)
        )
        (tmp_path / name).write_text(changed.to_json())
        return tmp_path / name

    base = written("a.json", 1.0)
    done = fastrec("compare", base, written("b.json", 1000.0), "--json")
    assert done.code == 1 and not done.json["paired"]
    assert [row["verdict"] for row in done.json["sizes"]] == ["slower"] * 2
    assert fastrec("compare", base, written("c.json", 0.001)).code == 0
    # An artifact has a report as well.
    assert fastrec("compare", base, saved.folder).code == 0
    elsewhere = fastrec("compare", base, written("d.json", 1000.0, cpu="another"), "--json")
    assert elsewhere.code == 0 and elsewhere.json["sizes"][0]["verdict"] == "not compared"
    assert "different machines" in elsewhere.err
