"""What to watch next, by what films are called: clean, encode, embed, train, compress, serve a request, take feedback, update.

`pip install -e ".[examples,text]"`, `python examples/content.py`, or with `--short`. A MiniLM reads titles, as it is or tuned a little: whichever
finds more of the likes that were held back serves. Two towers bring what it makes of titles together with users: a film that nobody has rated yet is scored by its text alone.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from likes import Past, cleaned
from minilm import Tower, Words, tokens
from reading import compressed_tower, trained
from title_tower import embedded
from told import Way, ndcg, recall, run, table, timed
from torch import Tensor, nn
from towers import apart
from watching import Films, judged, learn

import fastrec
from fastrec.measure import tensor_bytes
from fastrec.techniques import Fuse, ProjectPCA, QuantizeTables
from fastrec.wording import amount, duration

SHOWN, LAYERS = 10, 2
"""Films that are shown, and layers of the MiniLM that are tuned."""
BUDGET = fastrec.Budget({"auc": 0.002}, minimize="bytes")
Part = Sequence[Tensor]
Wanted = dict[int, Tensor]
Best = Callable[[Part], Tensor]
"""A user, what they liked last, and what they have seen -> the ten films that they are shown."""


def compressed(films: Films, part: Part, held: Part, folder: Path, seconds: float) -> fastrec.CompressedModel:
    """The towers with their texts in principal components and tables in int8, certified by rows held back; as it is loaded again."""
    traffic, _ = judged(part)
    fastrec.compress(
        films,
        traffic[0],
        request_features=["user", "liked"],
        recipe=[ProjectPCA(), Fuse(), QuantizeTables(least_bytes=0)],
        calibration=traffic,
        evaluate=judged(held)[1],
        budget=BUDGET,
        batch_sizes=(100,),
        seconds=seconds,
    ).save(folder)
    return fastrec.load(folder)


def plain(films: Films, first: int = 1) -> Best:
    """The best of the films from `first` on, by the model as it was trained; their vectors are computed once."""
    rows = torch.arange(first, len(films.known.weight))
    with torch.no_grad():
        vectors = films.film(rows, films.texts(rows))

    @torch.no_grad()
    def best(request: Part) -> Tensor:
        user, liked, seen = request
        scores = vectors @ films.person(user, liked)[0]
        scores[seen[seen >= first] - first] = -torch.inf
        return rows[scores.topk(min(SHOWN, len(rows))).indices]

    return best


def served(fast: fastrec.CompressedModel, count: int, first: int = 1) -> Best:
    """The same by a scorer of the compressed model, which has `count` rows."""
    rows = torch.arange(first, count)
    catalogue = fast.precompute({"film": rows})

    def best(request: Part) -> Tensor:
        user, liked, seen = request
        seen = seen[seen >= first] - first
        return rows[catalogue.topk({"user": user, "liked": liked}, min(SHOWN, count - first), seen=seen)[1]]

    return best


def by_chance(first: int, count: int) -> Best:
    """Any ten."""
    return lambda _: first + torch.randperm(count - first)[:SHOWN]


def found(films: Films, held: Part) -> float:
    """The NDCG of likes held back, each by who liked what they had liked before."""
    best, requests = plain(films), [*zip(*(x.split(1) for x in held), strict=True)]
    return ndcg(
        [best((user, liked, liked[0])) for user, liked, _ in requests], [film for *_, film in requests]
    )


def quality(past: Past, bests: Sequence[Best], wanted: Sequence[Wanted]) -> tuple[list[Tensor], list[str]]:
    """What users are shown by the first way; and of each the NDCG, of what its own users like."""
    shown = [[best(past.encode(user)) for user in users] for best, users in zip(bests, wanted, strict=True)]
    likes = [[*users.values()] for users in wanted]
    return shown[0], [f"{ndcg(*both):.4f}" for both in zip(shown, likes, strict=True)]


def latency(
    past: Past, users: Sequence[int], bests: dict[str, Best], towers: dict[str, nn.Module], texts: list[str], seconds: float
) -> str:  # fmt: skip
    """How long a request takes, and reading the titles of new films."""
    ways: dict[str, Way] = {name: {"encode": past.encode, "best 10": best} for name, best in bests.items()}
    rows = [[f"a request: {step}", *cells, ""] for step, *cells in timed(ways, users, seconds)]
    ways = {name: {"tokens": tokens, "vectors": partial(embedded, tower)} for name, tower in towers.items()}
    for count in (1, 32):
        batches = [texts[start : start + count] for start in range(0, len(texts[:640]), count)]
        rows += [[f"{count} new titles: {step}", *cells] for step, *cells in timed(ways, batches, seconds)]
    return table(["", *bests, "faster by", "word vectors"], rows)


def story(folder: Path, short: bool) -> list[str]:
    """The whole way, the compressed model being kept in a folder."""
    torch.manual_seed(0)
    seconds, steps = (15, 20) if short else (60, 100)
    ratings, texts = cleaned(1500 if short else None)
    train, now, later = (ratings[ratings.split == name] for name in ("train", "valid", "test"))
    new, newer = (1 + int(some.film.max()) for some in (train, pd.concat([train, now])))
    past = Past.of(train)
    part, held = apart(past.note(train))
    wanted = past.wanted(now), past.wanted(now, new)
    titles, coming = zip(*(x.tensor_split([newer - 1]) for x in tokens(texts)), strict=True)
    minilm = Tower().eval()
    words = Words(minilm).eval()
    readers = {  # what was trained before learns at a tenth of the rate and less
        "word vectors": (words, words.rows, 2e-4),
        "MiniLM": (minilm, minilm.encoder.encoder.layer[-LAYERS:], 2e-5),
    }
    chance = quality(past, [by_chance(1, newer), by_chance(new, newer)], wanted)[1]
    rows = [["any ten", "", *chance, "", "", ""]]
    for name, reader in readers.items():
        tried = []
        for how, made in zip(("as it is", "tuned"), trained(*reader, titles, part, past, steps), strict=True):
            shown, good = quality(past, [plain(made[1]), plain(made[1], new)], wanted)
            tried.append((found(made[1], held), f"{name}, {how}", made, shown))
            sizes = [amount(tensor_bytes(x)) for x in made]
            rows.append([tried[-1][1], f"{tried[-1][0]:.4f}", *good, "", *sizes])

    _, name, (minilm, films), before = max(tried, key=lambda one: one[0])
    reader, stored = compressed_tower(minilm, titles, 2 * seconds), copy.deepcopy(films)
    stored.texts.weight.data[1:] = embedded(reader, titles)
    fast = compressed(stored, part, held, folder, seconds)
    print(reader.report, fast.report, sep="\n\n")
    after, good = quality(past, [served(fast, newer), served(fast, newer, new)], wanted)
    memory = [one.report.memory for one in (reader, fast)]
    sizes = [amount(x.after_bytes + x.session_bytes) for x in memory]
    rows.append([f"{name}, compressed", "", *good, f"{recall(after, before):.1%}", *sizes])
    heads = ["of all films later", "of new ones alone"]
    all_heads = [
        "titles read by",
        "NDCG@10 of likes held back",
        *heads,
        "the same ten",
        "what reads",
        "what ranks",
    ]
    told = [table(all_heads, rows)]
    bests = {"before": plain(films), "after": served(fast, newer)}
    towers = {"before": minilm, "after": reader, "word vectors": words}
    told.append(latency(past, [*wanted[0]], bests, towers, texts, 2 if short else 10))

    news, count = past.note(now), 1 + len(texts)
    stored.grow(embedded(reader, coming))
    learn(stored, news, 1e-3, others=[torch.cat(after).unique()])
    traffic, evaluate = judged(news)
    try:
        updated = fastrec.update(folder, stored, calibration=traffic, evaluate=evaluate, budget=BUDGET)
    except fastrec.UpdateRefused as refused:
        return [*told, f"The model of before goes on: {refused}"]
    wanted = past.wanted(later), past.wanted(later, newer)
    was = quality(past, [served(fast, newer)], wanted[:1])[1]
    now = quality(past, [served(updated, count), served(updated, count, newer)], wanted)[1]
    rows = [["not updated", *was, "", ""], ["updated", *now, duration(updated.report.seconds)]]
    return [*told, table(["the tenth after", f"NDCG@10 {heads[0]}", heads[1], "the update"], rows)]


def main(short: bool = False) -> list[str]:
    """The tables of what was measured; `short` with the films rated most, and few steps of tuning."""
    with tempfile.TemporaryDirectory() as scratch:
        return story(Path(scratch) / "films", short)


if __name__ == "__main__":
    run(main, __doc__)
