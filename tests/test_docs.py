"""What the README says is so."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import online, pruning, searching, sharding, spread, trade_offs, updating, workers
from benchmarks.marks import put
from benchmarks.pages import results
from benchmarks.results import Results
from benchmarks.tables import brief
from fastrec import Budget, Fuse, compress
from fastrec.backends import Eager
from fastrec.measure import evaluator
from fastrec.techniques import QuantizeTables
from tests.zoo.joins import page

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mark", ["table", "request table", "int8 table", "request int8 table"])
def test_the_tables_are_the_committed_results(mark: str) -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition(f"<!-- {mark} -->\n")[2].partition(f"\n<!-- /{mark} -->")[0]
    found = [Results.read(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    kind = ("request" in mark, "int8" in mark, False)
    expected = [
        brief(results).strip() for results in found if (results.request, results.int8, results.bf16) == kind
    ]
    assert table.strip() in (expected or [""])


@pytest.mark.parametrize(
    "measured", [online, pruning, searching, sharding, spread, trade_offs, updating, workers]
)
def test_the_pages_are_the_committed_results(measured: ModuleType) -> None:
    page, name = measured.PAGE.read_text(), measured.__name__.rpartition(".")[2].replace("_", "-")
    for path in results(name).glob("*.json"):
        assert page == measured.with_table(page, measured.read(path))


def test_no_text_holds_both_sides_of_a_merge() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    assert [path for path in texts if re.search(r"^(<<<<<<<|>>>>>>>) ", path.read_text(), re.MULTILINE)] == []


def test_the_card_of_retrieval_has_the_committed_results() -> None:
    card = (ROOT / "docs" / "techniques" / "top-k.md").read_text()
    (path,) = (ROOT / "benchmarks" / "results" / "retrieval").glob("*.md")
    assert card == put(card, "retrieval", path.read_text())


def test_the_page_of_joins_is_what_the_rules_do() -> None:
    assert (ROOT / "docs" / "joins.md").read_text() == page(), "python -m tests.zoo.joins > docs/joins.md"


def test_every_promise_names_tests_that_there_are() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    asked = {f"T{number}" for number in (*range(1, 18), *range(20, 25))}
    assert asked <= set(re.findall(r"^\| (T[0-9]+) \|", page, re.MULTILINE))
    for row in (line for line in page.splitlines() if line.startswith("| T")):
        file = ROOT
        for path, name in re.findall(r"`(tests[^`:]*)?(?:::(test_[a-z0-9_]+))?`", row.split("|")[3]):
            file = ROOT / path if path else file
            assert file.exists(), path
            assert not name or f"def {name}(" in file.read_text(), name


def test_links_lead_somewhere() -> None:
    for text in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", text.read_text()):
            assert (text.parent / target).exists(), f"{text.name}: {target}"


def test_the_use_is_short_and_runs() -> None:
    code = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    written = []
    short = code.replace(
        "compress(model, batch)", "compress(model, batch, seconds=2, batch_sizes=(1,), progress=False)"
    )
    short = short.replace('open("report.json", "w").write', "written.append")
    exec(compile(short, "README.md", "exec"), {"written": written})
    assert written[0].startswith("{")


def block(holding: str) -> str:
    """The first example of the README that holds these words."""
    blocks = [part.partition("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    return next(one for one in blocks if holding in one)


def test_the_search_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = block('resume="trials.jsonl"').replace(
        "budget=", "seconds=2, batch_sizes=(64,), backends=Eager(), progress=False, budget="
    )
    model = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Sigmoid()).eval()
    held_out = [torch.randn(500, 8) for _ in range(2)]
    labels = torch.bernoulli(model(torch.cat(held_out)).detach()).flatten()
    given = {
        "compress": compress, "model": model, "batch": held_out[0][:64], "batches": [torch.randn(256, 8)],
        "held_out": held_out, "labels": labels, "Eager": Eager,
    }  # fmt: skip
    exec(compile(code, "README.md", "exec"), given)
    assert given["fast"].report.searched
    assert (tmp_path / "trials.jsonl").exists()


def test_the_loop_of_the_page_of_updates_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "updating.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    model = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Sigmoid()).eval()
    rows = [torch.randn(500, 8) for _ in range(2)]
    labels = torch.bernoulli(model(torch.cat(rows)).detach()).flatten()
    first = compress(model, rows[0][:64], seconds=1, batch_sizes=(64,), backends=Eager(), progress=False)
    first.save("ranker")
    given = {
        "model": model, "evaluate": evaluator(rows, labels, ["auc"]), "batch": {"input": rows[0][:3]},
    }  # fmt: skip
    exec(compile("\n".join(blocks), "updating.md", "exec"), given)
    assert given["scores"].shape == (3, 1) and given["served"].digest == given["new"].digest != first.digest


class _Towers(torch.nn.Module):
    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(user) * item).sum(-1)


def test_the_request_of_the_readme_runs() -> None:
    code = block("fast.precompute")
    short = code.replace(
        "request_features=", "seconds=5, batch_sizes=(1,), progress=False, request_features="
    )
    user, catalogue = torch.randn(1, 4).repeat(6, 1), torch.randn(50, 4)
    given = {
        "compress": compress,
        "model": _Towers(),
        "user": user,
        "item": catalogue[:6],
        "catalogue": catalogue,
        "rows": [3, 1],
    }
    exec(compile(short, "README.md", "exec"), given)
    best = _Towers()(user[:1].expand(50, -1), catalogue).topk(10)
    assert given["rows"].tolist() == best.indices.tolist()


def test_the_int8_of_the_readme_runs() -> None:
    code = block("QuantizeTables(), QuantizeLinears()],\n    calibration")
    short = code.replace("recipe=", "seconds=5, batch_sizes=(64,), progress=False, recipe=")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1)).eval()
    held_out = [torch.randn(500, 64) for _ in range(4)]
    with torch.no_grad():
        labels = torch.bernoulli(torch.sigmoid(torch.cat([model(x) for x in held_out]))).flatten()
    given = {
        "compress": compress,
        "model": model,
        "batch": held_out[0][:64],
        "batches": [torch.randn(256, 64)],
        "held_out": held_out,
        "labels": labels,
    }
    exec(compile(short, "README.md", "exec"), given)
    fast = given["fast"]
    assert all(one.holds for one in fast.report.accuracy)
    assert [step.technique for step in fast.report.steps] == ["fuse", "quantize_tables", "quantize_linears"]


def test_the_segments_of_the_readme_run() -> None:
    code = block("newcomers")
    short = code.replace("recipe=", "seconds=5, batch_sizes=(64,), progress=False, recipe=")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(500, 16), torch.nn.Linear(16, 1), torch.nn.Sigmoid()
    ).eval()
    ids = torch.randint(500, (8000,))
    given = {
        "compress": compress,
        "Budget": Budget,
        "evaluator": evaluator,
        "Fuse": Fuse,
        "QuantizeTables": partial(QuantizeTables, least_bytes=0),
        "model": model,
        "batch": ids[:64],
        "held_out": ids.split(1000),
        "labels": torch.bernoulli(model(ids).detach()).flatten(),
        "held_out_items": ids,
        "train_items": torch.randint(500, (9000,)),
        "held_out_users": ids % 90,
        "train_users": range(80),
    }
    exec(compile(short, "README.md", "exec"), given)
    report = given["fast"].report
    assert all(one.holds for one in report.segments) and not report.refused
    assert {one.grouping for one in report.segments} == {"popularity", "user"}
