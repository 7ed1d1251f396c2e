"""The benchmark's own arithmetic and bookkeeping; no test here looks at a clock."""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import accumulate, count, cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec.capture import capture
from fastrec.cost import Cost
from fastrec.measure import Latency, Ratio, machine
from fastrec.program import Program

from .ceilings import Rates, Remaining, ceiling, measure_rates
from .efficiency import gains, summary, with_table
from .models import CASES
from .peers import PEERS, Work
from .results import ONCE, OURS, CaseResult, Cell, Means, Overhead, Prepared, Results, merge
from .run import main
from .searching import ORIGINAL, Row, Searched
from .tables import brief, markdown
from .turns import take_turns
from .worker import _Bench


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
    assert _result(4.0).cells[0].best() == "eager"


def test_in_bf16_the_rivals_are_those_that_round_as_much(tmp_path: Path) -> None:
    results = replace(Results().with_case(_result(2.0)), bf16=True)
    assert "openvino-default" in results.rivals and not any("int8" in name for name in results.rivals)
    assert "over the best fp32 or bf16 peer" in markdown(results) and "bfloat16" in markdown(results)
    results.write(tmp_path / "m.json")
    assert Results.read(tmp_path / "m.json") == results
    with pytest.raises(ValueError, match="bf16 table"):
        with_table("<!-- table --><!-- /table -->", results)


def test_table_lists_what_could_not_run() -> None:
    text = markdown(Results().with_case(_result(2.0)))
    assert "deepfm, openvino: not / here" in text and "2.00x [1.90 to 2.10x]" in text and "10.0 us" in text


def test_means_are_geometric_and_count_their_cells() -> None:
    results = Results({"deepfm": _result(2.0), "din": _result(8.0)}, request=True)
    found = results.means(("deepfm", "din", "dlrm"), (100, 500))
    assert found == Means(pytest.approx(4.0), pytest.approx(4.0), 2)
    assert results.means(("dlrm",), (100,)) is None
    assert "4.00x over eager, 4.00x over the best fp32 peer (2 of 12 measured)." in markdown(results)
    assert "2 of 12" not in markdown(replace(results, request=False))


def test_the_ceiling_stands_beside_the_time_it_took() -> None:
    case = _result(2.0)
    left = Remaining(4000.0, 1000.0, 250.0, Rates(5e10, 2e10, 3e7))
    case = replace(case, remaining=left, cells=(replace(case.cells[0], ceiling=0.0004),))
    assert "| deepfm | 100 | 4,000 | 1,000 | 250 | 400 us | 1.00 ms | 2.50x |" in markdown(
        Results({"deepfm": case})
    )
    assert "Ceilings" not in markdown(Results({"deepfm": _result(2.0)}))


def test_a_ceiling_is_the_longest_of_three_times_for_each_call() -> None:
    rates = Rates(multiply_adds=1000.0, bytes=100.0, lookups=10.0)
    assert rates.seconds(Cost(2000, 100, 1, 5)) == 2.0
    assert rates.seconds(Cost(0, 300, 1, 5)) == 3.0
    assert rates.seconds(Cost(0, 300, 1, 40)) == 4.0
    integers = replace(rates, of_codes=8000.0)
    assert integers.seconds(Cost(16000, of_codes=16000)) == 2.0
    assert rates.seconds(Cost(16000, of_codes=16000)) == 16.0

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(50, 8), nn.Linear(8, 6)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.layer(self.table(ids))
            return x * torch.sigmoid(x).unflatten(1, (2, 3)).flatten(1)

    program = capture(Program.read(Gated().eval(), torch.randint(50, (4,))))
    rows = 20
    # The sigmoid is worked out where the product with it is.
    products, looked_up, written = 8 * 6 * rows, rows, 4 * 6 * rows
    assert ceiling(program, rows, Rates(1.0, 1e12, 1e12)) == pytest.approx(products)
    assert ceiling(program, rows, Rates(1e12, 1e12, 1.0)) == pytest.approx(looked_up)
    seen = ceiling(program, rows, Rates(1e12, 1.0, 1e12))
    assert seen == 2 * 4 * 8 * rows + (4 * (8 * 6 + 6) + written) + written


def test_rates_take_the_best_try() -> None:
    ticks = accumulate(cycle([1, 3000, 1, 1000, 1, 2000]))
    rates = measure_rates(clock=lambda: next(ticks))
    assert rates.multiply_adds == pytest.approx(500 * 400 * 400 / 1e-6)
    assert rates.bytes == pytest.approx(500 * 400 * 4 / 1e-6)
    assert rates.lookups == pytest.approx(500 * 26 / 1e-6)


def test_the_page_takes_each_table_between_its_own_marks() -> None:
    page = "a\n<!-- table -->\nold\n<!-- /table -->\nb\n<!-- request table -->\nold\n<!-- /request table -->\nc\n"
    plain, asked = Results({"deepfm": _result(2.0)}), Results({"deepfm": _result(4.0)}, request=True)
    made = with_table(with_table(page, plain), asked)
    assert "old" not in made and brief(plain) in made and brief(asked) in made
    assert [line for line in made.splitlines() if line in ("a", "b", "c")] == ["a", "b", "c"]
    assert with_table(with_table(made, asked), plain) == made
    with pytest.raises(ValueError, match="request table"):
        with_table("<!-- table -->\n<!-- /table -->", asked)


def test_the_summary_has_the_mean_of_the_six_and_the_worst_and_the_best_of_all() -> None:
    cases = {"deepfm": _result(2.0), "din": _result(8.0), "text_ranker": _result(0.5)}
    *_, exact, asked = summary([Results(cases), Results({"deepfm": _result(3.0)}, request=True)]).splitlines()
    both = "**4.00x** | 0.500 to 8.00x"
    assert exact == f"| exact | 3 | {both} | {both} |"
    assert asked.startswith("| exact, the request known | 1 | **3.00x** |")


def test_gains_are_over_the_model_as_it_is() -> None:
    def row(recipe: str, ratio: float) -> Row:
        found = {str(n): Ratio(ratio, ratio, ratio, 40) for n in (1, 100, 1000)}
        return Row("films", recipe, "fuse", "", 1.0, -0.00002, 0.0001, {}, found)

    given = Searched(machine(), {}, {}, (row("found", 1.0), row(ORIGINAL, 3.0), row("exact", 1.5)))
    lines = gains(given).splitlines()
    assert lines[-2] == "| films | found: `fuse` | -0.00002 | 0.00010 | 3.00x | 3.00x | 3.00x |"
    assert lines[-1] == "| films | exact | -0.00002 | 0.00010 | 2.00x | 2.00x | 2.00x |"


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
    axes = case.axes.values()
    assert all(axis is None or tensor.shape[axis] == 3 for tensor, axis in zip(first, axes, strict=True))
    model = case.build()
    assert list(inspect.signature(model.forward).parameters) == list(case.axes)
    assert not model.training and torch.equal(model(*first), case.build()(*first))
    assert model(*first).numel() == 3


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.request])
def test_one_request_is_the_same_in_every_row_and_candidates_are_not(name: str) -> None:
    case = CASES[name].of_one_request()
    batch = case.make_batch(4, torch.Generator().manual_seed(0))
    drawn = CASES[name].make_batch(4, torch.Generator().manual_seed(0))
    once = case.given_once(batch)
    for feature, same, free, one in zip(case.axes, batch, drawn, once, strict=True):
        asked = case.request.get(feature, False)
        assert same.is_contiguous() and same.shape == free.shape
        if asked is True:
            assert torch.equal(same, free[:1].expand_as(free)) and torch.equal(one, free[:1])
        else:
            columns = list(asked or ())
            rest = [k for k in range(free.shape[-1]) if k not in columns] if columns else slice(None)
            assert torch.equal(same[..., columns], free[:1][..., columns].expand(4, -1)) if columns else True
            assert torch.equal(same[..., rest], free[..., rest]) and one is same
            assert not torch.equal(same[:1].expand_as(same), same)


def test_each_way_is_timed_on_its_own_form_of_the_same_batch() -> None:
    case = CASES["two_tower"].of_one_request()
    bench = _Bench(case, (3,), 0.0, 0, lambda text: None)
    seen: dict[str, list[tuple[Tensor, ...]]] = {OURS: [], ONCE: []}
    calls = {name: batches.append for name, batches in seen.items()}
    bench.turns(calls, bench.inputs(3, 1), 0.0, 2)
    assert len(seen[OURS]) == len(seen[ONCE]) == 4
    for (user, item), (one, same) in zip(seen[OURS], seen[ONCE], strict=True):
        assert user.shape == (3, 8) and torch.equal(one, user[:1]) and same is item


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


def test_a_case_that_is_no_request_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--request", "--cases", "din,text_ranker"])
    assert "a call of text_ranker is not one request" in capsys.readouterr().err
