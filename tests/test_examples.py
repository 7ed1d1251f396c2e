"""The examples, in a short form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastrec
from fastrec.backends import Eager, OnnxRuntime

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("hotel_bookings", EXAMPLES / "hotel_bookings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "hotel_bookings", module)
    return module


def test_hotel_bookings(example: ModuleType) -> None:
    parts, sizes = example.load()
    assert {name: len(part[2]) for name, part in parts.items()} == {
        "train": 47756,
        "valid": 11939,
        "test": 11939,
    }
    some = tuple(x[:2000] for x in parts["train"])
    torch.manual_seed(0)
    model = example.DeepFM(sizes, len(example.NUMBERS))
    example.train(model, some, epochs=1)
    model.eval()
    ids, numbers, _ = parts["test"]
    batch = (ids[:64], numbers[:64])
    fast = fastrec.compress(model, batch, batch_sizes=(1,), seconds=2, backends=Eager(), progress=False)
    assert example.quality(model, parts["test"]) == example.quality(fast, parts["test"])
    batch = example.offers(parts["test"], guest=3, count=50)
    ranker = fastrec.compress(
        model,
        batch,
        request_features=example.REQUEST,
        batch_sizes=(1,),
        seconds=2,
        backends=Eager(),
        progress=False,
    )
    torch.testing.assert_close(ranker(*batch), model(*batch).detach())
    assert ranker.report.work is not None
    assert ranker.report.work.candidate_after < ranker.report.work.candidate_before


def test_bookings_int8(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("bookings_int8", EXAMPLES / "bookings_int8.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = []

    def short(*args: object, **options: object) -> fastrec.CompressedModel:
        made.append(
            compress(*args, **options, batch_sizes=(200,), seconds=5, backends=OnnxRuntime(), progress=False)
        )  # type: ignore[arg-type]
        return made[0]

    compress = fastrec.compress
    monkeypatch.setattr(fastrec, "compress", short)
    module.main()
    report = made[0].report
    assert [step.technique for step in report.steps] == ["fuse", "quantize_tables", "quantize_linears"]
    assert {one.metric for one in report.accuracy} == {"auc", "logloss"}
    approximate = not report.sizes[0].session.endswith(("exact", "original"))
    assert all(one.holds for one in report.accuracy) or not approximate
    assert "AUC" in capsys.readouterr().out


def test_the_data_names_its_licence() -> None:
    text = (EXAMPLES / "data" / "README.md").read_text()
    assert "CC BY 4.0" in text and "10.1016/j.dib.2018.11.126" in text


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name
