"""The benchmark's own arithmetic and bookkeeping; no test here looks at a clock."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

from fastrec.measure import Latency, Ratio, machine

from .models import CASES
from .peers import PEERS, Work
from .results import OURS, CaseResult, Cell, Overhead, Prepared, Results, merge
from .run import main
from .tables import markdown
from .turns import take_turns


def _result(speedup: float) -> CaseResult:
    latency = Latency(40, 0.002, 0.003, None, 0.0019, 0.0021)
    ours = Latency(40, 0.002 / speedup, 0.003, None, 0.0009, 0.0011)
    cell = Cell(
        rows=100,
        latency={"eager": latency, "onnxruntime-int8": ours, OURS: ours},
        speedup={"eager": Ratio(speedup, speedup - 0.1, speedup + 0.1, 40)},
        difference={"eager": 0.0, "onnxruntime-int8": 0.01, OURS: 1e-7},
        chosen="onnxruntime",
        load=0.5,
    )
    return CaseResult(
        "deepfm", "a note", machine(), {"eager": Prepared(0.1, 0.2, 3)}, {"openvino": "not | here"}, (cell,),
        (Overhead(100, 1e-5, 9e-6, 1.1e-5, 40),), 10**9,
    )  # fmt: skip


def test_results_survive_json(tmp_path: Path) -> None:
    results = Results().with_case(_result(2.0))
    results.write(tmp_path / "m.json")
    assert Results.read(tmp_path / "m.json") == results
    assert Results.read(tmp_path / "none.json") == Results()


def test_merge_takes_medians_and_intervals_over_processes() -> None:
    merged = merge([_result(value) for value in (1.8, 2.0, 2.1, 2.4, 2.0)])
    ratio = merged.cells[0].speedup["eager"]
    assert merged.processes == 5 and ratio.n == 200
    assert ratio.value == 2.0 and 1.8 <= ratio.low < 2.0 <= ratio.high <= 2.4


def test_int8_is_never_the_best_fp32_peer() -> None:
    assert _result(4.0).cells[0].best == "eager"


def test_table_lists_what_could_not_run() -> None:
    text = markdown(Results().with_case(_result(2.0)))
    assert "deepfm, openvino: not / here" in text and "2.00x [1.90 to 2.10x]" in text and "10.0 us" in text


def test_turns_time_the_second_call_on_an_input_of_its_own() -> None:
    now, drawn = count(0, 1000), count()
    seen: dict[str, list[int]] = {"a": [], "b": []}
    calls = {name: values.append for name, values in seen.items()}
    samples = take_turns(calls, lambda: next(drawn), seconds=0.0, min_rounds=4, clock=lambda: next(now))
    assert samples.rounds == 4 and (samples.seconds["a"] == 1e-6).all()
    assert seen["a"] == seen["b"] == list(range(8))


@pytest.mark.parametrize("name", CASES)
def test_cases_draw_fresh_batches_and_score_every_row(name: str) -> None:
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    first, second = case.make_batch(3, generator), case.make_batch(3, generator)
    assert len(first) == len(case.axes) and not torch.equal(first[0], second[0])
    assert all(axis is None or tensor.shape[axis] == 3 for tensor, axis in zip(first, case.axes, strict=True))
    model = case.build()
    assert not model.training and torch.equal(model(*first), case.build()(*first))
    assert model(*first).numel() == 3


def test_a_peer_that_needs_what_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert PEERS["eager"].missing() is None
    assert PEERS["openvino-int8"].missing() == "not installed: pip install openvino nncf"


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8"])
def test_peers_answer_as_the_model_does(name: str, tmp_path: Path) -> None:
    if reason := PEERS[name].missing():
        pytest.skip(reason)
    case, generator = CASES["two_tower"], torch.Generator().manual_seed(0)
    work = Work(case, [case.make_batch(8, generator) for _ in range(4)], tmp_path)
    call = PEERS[name].prepare(work)
    for rows in (1, 5):
        batch = case.make_batch(rows, generator)
        tolerance = 1e-5 if PEERS[name].fp32 else 0.2
        torch.testing.assert_close(call(batch), work.original(*batch), rtol=0.0, atol=tolerance)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--cases", "deepfn"])
    assert "deepfn" in capsys.readouterr().err
