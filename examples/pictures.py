"""A ranker whose item tower looks at pictures, made faster: `python examples/pictures.py`.

Convolutions take up their norms exactly, then 8-bit integers within a budget; and what many customers are shown is computed once.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence

import torch
from album import SIDE, album
from measured import LATENCY, LOSSES, TURNS, latency, losses, turns
from shop import SPARE, WIDTH, Shop, cleaned
from taste import SHOWN, learn
from taste import quality as ranked
from told import run, table
from torch import Tensor, nn
from traffic import batches, feedback, taken_in

import fastrec
from fastrec.measure import Evaluator, evaluator, interleaved
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.wording import amount

TRAINED, WEEKS = 20, 4
"""The first week that is not trained on, and the weeks of each round from there on."""
BUDGET = fastrec.Budget({"auc": 0.002, "logloss": 0.002})
RECIPE = [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]
SIZES = (10, 100, 500)
"""How many articles a customer may be shown."""
Rows = tuple[Tensor, ...]


class Pictured(nn.Module):
    """What a customer bought last, and an article by its id, price, sales and picture -> the chance that they buy it."""

    def __init__(self, factors: Tensor, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(factors.clone(), freeze=False)
        layers, before = list[nn.Module](), 3
        for stride, after in zip((1, 2, 2), channels, strict=True):
            conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            layers, before = [*layers, conv, nn.BatchNorm2d(after), nn.ReLU()], after
        self.eye = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.user = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64))
        self.item = nn.Sequential(nn.Linear(before + WIDTH + 2, 128), nn.ReLU(), nn.Linear(128, 64))

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Rows for articles that are new, in the middle of what there is: what tells them apart is their picture."""
        old = self.items.weight
        fresh = old[1 + SPARE :].mean(0).expand(count - len(old), -1)
        self.items = nn.Embedding.from_pretrained(torch.cat([old, fresh]), freeze=False)

    def forward(self, history: Tensor, item: Tensor, about: Tensor, picture: Tensor) -> Tensor:
        """Histories (N, 20), articles (N,), price and sales (N, 2), pictures (N, 3, S, S) in bytes -> chances (N,)."""
        real = (history > 0).unsqueeze(2)
        taste = self.user((self.items(history) * real).sum(1) / real.sum(1).clamp(min=1))
        looks = self.eye(picture.float() / 255)
        return torch.sigmoid((taste * self.item(torch.cat([looks, self.items(item), about], 1))).sum(1))


def shelf(shop: Shop, pictures: dict[int, Tensor]) -> Tensor:
    """The pictures (M, 3, S, S) of all articles by their rows, which begin with those that several share: these are dark."""
    dark = torch.zeros(1 + SPARE, 3, SIDE, SIDE, dtype=torch.uint8)
    return torch.cat([dark, torch.stack([pictures[item] for item in shop.known])])


def seen(part: Sequence[Tensor], shown: Tensor) -> Rows:
    """Rows with the pictures of their articles, labels last."""
    history, item, about, label = part
    return history, item, about, shown[item], label


def judged(part: Rows) -> Evaluator:
    """AUC and log loss, with a call for each customer, whose rows are not independent of each other."""
    counts = part[0].unique_consecutive(dim=0, return_counts=True)[1]
    calls = zip(*(x.split(counts.tolist()) for x in part[:-1]), strict=True)
    return evaluator(calls, part[-1], ["auc", "logloss"], groups=torch.arange(len(counts)).repeat_interleave(counts))


def in_turns(
    model: Pictured, exact: fastrec.CompressedModel, coarse: fastrec.CompressedModel, stock: dict[str, Tensor],
    histories: Sequence[Tensor], seconds: float,
) -> list[str]:  # fmt: skip
    """One customer and a hundred articles, then one customer and all of them, by every way there is."""
    catalogue, count = exact.precompute(stock), len(stock["item"])

    def draw(index: int) -> tuple[Tensor, Rows]:
        rows = torch.randint(count, (100,), generator=torch.Generator().manual_seed(index))
        history = histories[index % len(histories)].repeat(100, 1)
        return rows, (history, *(x[rows] for x in stock.values()))

    hundred = {
        "the model": lambda given: model(*given[1]),
        "exact": lambda given: exact(*given[1]),
        "int8": lambda given: coarse(*given[1]),
        "articles computed before": lambda given: catalogue({"history": given[1][0][:1]}, given[0]),
    }
    ten = {
        "the model": lambda history: model(history.expand(count, -1), *stock.values()).topk(SHOWN).indices,
        "articles computed before": lambda history: catalogue.topk({"history": history}, SHOWN)[1],
    }
    some = [history[None] for history in histories[:20]]
    with torch.no_grad():
        few = interleaved(hundred, draw, seconds=seconds)
        whole = interleaved(ten, lambda i: some[i % len(some)], rounds=len(some), warmup=1)
        alike = sum(bool(torch.isin(*(call(history) for call in ten.values())).all()) for history in some)
    return [
        f"One customer and 100 articles:\n\n{table(TURNS, turns(few))}",
        f"The best {SHOWN} of {count:,} articles for one customer; {alike} of {len(some)} lists hold the same; what is computed before takes {amount(catalogue.resident_bytes)}:\n\n{table(TURNS, turns(whole))}",
    ]


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
    learn(model, known, 2e-3)
    certain = judged(seen(taken_in(shop, held, rng), shown))
    customers = shop.wanted(lately)
    news = seen(taken_in(shop, lately, rng), shown)

    batch = tuple(x[:100] for x in known[:-1])
    settings = {"request_features": ["history"], "calibration": batches(known), "batch_sizes": SIZES}
    settings["seconds"] = 8 if short else 90
    exact = fastrec.compress(model, batch, recipe=Fuse(), **settings)
    coarse = fastrec.compress(model, batch, recipe=RECIPE, evaluate=certain, budget=BUDGET, **settings)
    made = {"exact": exact, "int8": coarse}
    test = judged(news)
    before = test.scores(model)
    quality = [(name, *row) for name, fast in made.items() for row in losses(test.losses(before, test.scores(fast)))]
    taken = [(name, *row) for name, fast in made.items() for row in latency(fast.report)]

    count = len(shown)
    items = torch.arange(1, count)
    stock = {"item": items, "about": shop.features(items), "picture": shown[items]}
    histories = [history for history, _ in customers]
    told = in_turns(model, exact, coarse, stock, histories, 3 if short else 20)
    # Served: the best of the catalogue; feedback: what was bought of it.
    catalogue = exact.precompute(stock)
    lists = [items[catalogue.topk({"history": history[None]}, SHOWN)[1]] for history in histories]
    said = seen(feedback(shop, customers[::10], lists[::10]), shown)
    shop.learn(lately)
    model.grow(len(shop.price))
    shown = shelf(shop, pictures)
    learn(model, [torch.cat(both) for both in zip(said, news, strict=True)], 5e-4)
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/ranker"
        coarse.save(folder)
        new = fastrec.update(folder, model, batch=batch, calibration=batches(news), evaluate=test, budget=BUDGET)
    after = seen(taken_in(shop, later, rng), shown)
    # The model of before knows new articles by the rows that several share, and by their pictures.
    history, item, *rest = after
    unknown = (history.where(history < count, 0), item.where(item < count, 1 + item % SPARE), *rest)
    now, was = judged(after)(new), judged(unknown)(coarse)
    return [
        *(f"{name}: {fast.report.headline}. {_done(fast.report)}." for name, fast in made.items()),
        f"{len(lists):,} customers were shown {SHOWN} articles each: {ranked(lists, [bought for _, bought in customers])}.",
        f"The weeks after, the model and what was compressed (a loss below zero is a gain):\n\n{table(('form', *LOSSES), quality)}",
        f"One customer and so many articles, the model and what serves:\n\n{table(('form', *LATENCY), taken)}",
        *told,
        f"The weeks after those, had it learned nothing, and updated:\n\n{table(('metric', 'as it was', 'updated'), [(name, f'{was[name]:.5f}', f'{now[name]:.5f}') for name in now])}",
    ]


def _done(report: fastrec.Report) -> str:
    """What was done, by rules."""
    rules = Counter(change.rule for step in report.steps for change in step.changes)
    return "done: " + ", ".join(f"{rule} {count}" for rule, count in rules.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, __doc__)
