"""A ranker whose item tower looks at pictures, made faster: `python examples/pictures.py`.

Convolutions take up their norms exactly, then 8-bit integers within a budget; and what many customers are shown is computed once.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from album import album
from measured import LATENCY, LOSSES, TURNS, latency, losses, turns
from pictured import Pictured, Rows, judged, seen, shelf
from shop import SPARE, Shop, cleaned
from taste import SHOWN, learn
from taste import quality as ranked
from told import run, table
from torch import Tensor
from traffic import batches, feedback, taken_in

import fastrec
from fastrec.measure import interleaved
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.wording import amount

TRAINED, WEEKS = 36, 4
"""The first week that is not trained on, and the weeks of each round from there on."""
LEAST = 10
"""What a customer has bought, at the least, to be learned from."""
SIZES = (10, 100, 500)
"""How many articles a customer may be shown."""
BUDGET = fastrec.Budget({"auc": 0.002, "logloss": 0.002})
RECIPES = {"exact": [Fuse()], "int8": [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]}
Forms = Mapping[str, fastrec.CompressedModel]


def in_turns(
    model: Pictured, forms: Forms, stock: dict[str, Tensor], histories: Sequence[Tensor], seconds: float
) -> list[str]:
    """One customer and a hundred articles, then one customer and all of them, by every way there is."""
    catalogue, count = forms["exact"].precompute(stock), len(stock["item"])

    def draw(index: int) -> tuple[Tensor, Rows]:
        rows = torch.randint(count, (100,), generator=torch.Generator().manual_seed(index))
        history = histories[index % len(histories)].repeat(100, 1)
        return rows, (history, *(x[rows] for x in stock.values()))

    hundred = {
        "the model": lambda given: model(*given[1]),
        "exact": lambda given: forms["exact"](*given[1]),
        "int8": lambda given: forms["int8"](*given[1]),
        "articles computed before": lambda given: catalogue({"history": given[1][0][:1]}, given[0]),
    }
    best = {
        "the model": lambda history: model(history.expand(count, -1), *stock.values()).topk(SHOWN).indices,
        "articles computed before": lambda history: catalogue.topk({"history": history}, SHOWN)[1],
    }
    some = [history[None] for history in histories[:10]]
    with torch.no_grad():
        few = interleaved(hundred, draw, seconds=seconds)
        whole = interleaved(best, lambda i: some[i % len(some)], rounds=len(some), warmup=1)
        alike = sum(bool(torch.isin(*(call(history) for call in best.values())).all()) for history in some)
    return [
        f"One customer and 100 articles:\n\n{table(TURNS, turns(few))}",
        f"The best {SHOWN} of {count:,} articles for one customer:\n\n{table(TURNS, turns(whole))}",
        f"{alike} of {len(some)} lists hold the same articles. What is computed before takes {amount(catalogue.resident_bytes)}.",
    ]


def updated(folder: str, model: Pictured, batch: Rows, part: Rows) -> fastrec.CompressedModel | None:
    """What serves after the model has learned from these rows; None if a gate does not open, and what served before goes on."""
    try:
        return fastrec.update(folder, model, batch=batch, calibration=batches(part), evaluate=judged(part))
    except fastrec.UpdateRefused as refused:
        print(f"the model of before goes on: {refused}")
        return None


def main(short: bool = False) -> Sequence[str]:
    """Draw, train, compress exactly and in int8, compute the catalogue once, serve, and bring it up to what was bought."""
    torch.manual_seed(0)
    rng, shop, lines = torch.Generator().manual_seed(0), Shop(), cleaned()
    lines = lines[lines.user % 6 == 0] if short else lines
    pictures = album(lines)
    rounds = [TRAINED + WEEKS * i for i in range(4)]
    past, held, lately, later = (
        lines[lines.week.between(first, last - 1)] for first, last in zip([0, *rounds], rounds, strict=False)
    )
    shop.learn(past)
    model, shown = Pictured(shop.factors(past)), shelf(shop, pictures)
    known = seen(taken_in(shop, past, rng), shown)
    # At first hardly anyone had bought anything, which is not so later on.
    known = tuple(x[(known[0] > 0).sum(1) >= LEAST] for x in known)
    for rate in (2e-3, 1e-3):
        learn(model, known, rate)
    certain = judged(seen(taken_in(shop, held, rng), shown))
    customers = shop.wanted(lately)
    news = seen(taken_in(shop, lately, rng), shown)
    test, batch = judged(news), tuple(x[:100] for x in known[:-1])
    forms = {
        name: fastrec.compress(
            model, batch, recipe=recipe, request_features=["history"], calibration=batches(known), evaluate=certain,
            budget=BUDGET, batch_sizes=SIZES, seconds=15 if short else 60,
        )
        for name, recipe in RECIPES.items()
    }  # fmt: skip
    before = test.scores(model)
    lost = {name: losses(test.losses(before, test.scores(fast))) for name, fast in forms.items()}
    items = torch.arange(1, len(shown))
    stock = {"item": items, "about": shop.features(items), "picture": shown[items]}
    histories = [history for history, _ in customers]
    told = in_turns(model, forms, stock, histories, 3 if short else 20)

    # Served: the best of the catalogue. Feedback: what was bought of it, and what was bought besides.
    catalogue = forms["exact"].precompute(stock)
    lists = [items[catalogue.topk({"history": history[None]}, SHOWN)[1]] for history in histories]
    said = seen(feedback(shop, customers[::10], lists[::10]), shown)
    with tempfile.TemporaryDirectory() as folder:
        forms["int8"].save(f"{folder}/ranker")
        served = fastrec.load(f"{folder}/ranker")  # it stays as it is, whatever the model learns
        shop.learn(pd.concat([held, lately]))
        model.grow(len(shop.price))
        learn(model, [torch.cat(both) for both in zip(said, news, strict=True)], 5e-4)
        new = updated(f"{folder}/ranker", model, batch, news)
    history, item, *rest = after = seen(taken_in(shop, later, rng), shelf(shop, pictures))
    # What served before knows new articles by the rows that several share, and by their pictures.
    count = len(shown)
    as_before = (history.where(history < count, 0), item.where(item < count, 1 + item % SPARE), *rest)
    was = judged(as_before)(served)
    now = was if new is None else judged(after)(new)
    return [
        *(f"{name}: {fast.report.headline}. Done: {_done(fast.report)}." for name, fast in forms.items()),
        "The weeks after, the model and what was compressed (a loss below zero is a gain):\n\n"
        + table(("form", *LOSSES), [(name, *row) for name, rows in lost.items() for row in rows]),
        "One customer and so many articles, the model and what serves:\n\n"
        + table(("form", *LATENCY), [(name, *row) for name, fast in forms.items() for row in latency(fast.report)]),
        *told,
        f"{len(lists):,} customers were shown {SHOWN} articles each: {ranked(lists, [some for _, some in customers])}.",
        "The weeks after those, had it learned nothing, and updated:\n\n"
        + table(("metric", "as it was", "updated"), [(name, f"{was[name]:.5f}", f"{now[name]:.5f}") for name in now]),
    ]  # fmt: skip


def _done(report: fastrec.Report) -> str:
    """How often each rule was applied."""
    rules = Counter(change.rule for step in report.steps for change in step.changes)
    return ", ".join(f"{rule} {times}x" for rule, times in rules.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, __doc__)
