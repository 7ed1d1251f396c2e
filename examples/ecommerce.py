"""An online shop, the whole way: clean, encode, embed, train, compress, serve a request, take feedback, update.

`python examples/ecommerce.py`, or with `--short`. Of all articles two towers retrieve 200 for a customer, of these a deep interest
network ranks the ten that are shown. What comes of it is simulated by what customers really bought.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from shop import SPARE, WIDTH, Shop, cleaned
from taste import SHOWN, Articles, Taste, judged, learn
from told import Way, ndcg, recall, run, table, through, timed
from torch import Tensor, nn
from towers import Attention, among, apart, averaged, passed
from traffic import Wanted, batches, feedback, taken_in

import fastrec
from fastrec.measure import tensor_bytes
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.wording import amount

FIRST, WEEKS = 44, 4
"""The first week that is served, and how many until the models are updated."""
RETRIEVED = 200
BUDGET = fastrec.Budget({"auc": 0.002})
RECIPE = [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]
Part = Sequence[Tensor]
Lists = list[Tensor]


class Towers(Articles):
    """A customer, and an article, each as a vector; their product says how well they go together."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__(factors)
        self.wish = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64))
        self.offer = nn.Sequential(nn.Linear(WIDTH + 2, 128), nn.ReLU(), nn.Linear(128, 64))

    def customer(self, history: Tensor) -> Tensor:
        """What customers bought last (N, 20) -> vectors (N, 64)."""
        return self.wish(averaged(self.items(history), history))

    def article(self, item: Tensor, about: Tensor) -> Tensor:
        """Articles (N,), price and sales (N, 2) -> vectors (N, 64)."""
        return self.offer(torch.cat([self.items(item), about], 1))

    def forward(self, history: Tensor, item: Tensor, about: Tensor) -> Tensor:
        """Histories (N, 20), articles (N,), price and sales (N, 2) -> scores (N,)."""
        return (self.customer(history) * self.article(item, about)).sum(1)


def learn_towers(model: Towers, part: Part, rate: float) -> None:
    """One pass over what was bought, each article among all that were bought in its batch."""
    history, item, about = (x[part[-1] > 0] for x in part[:-1])
    often = torch.bincount(item).float()

    def loss(chosen: Tensor) -> Tensor:
        some, place = item[chosen].unique(return_inverse=True)
        row = torch.zeros_like(some).scatter_(0, place, chosen)  # one of each article's rows
        return among(model.customer(history[chosen]), model.article(some, about[row]), place, often[some])

    passed(model, loss, len(item), rate)


def request(
    shop: Shop,
    known: int,
    retrieve: Callable[[Tensor], Tensor],
    rank: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Way:
    """The steps of a request by models that know the first `known` rows of articles."""
    names = {row: item for item, row in shop.known.items()}

    def encode(customer: int) -> Tensor:
        history = shop.history(customer)
        return history.where(history < known, 0)[None]

    def retrieved(history: Tensor) -> Part:
        items = retrieve(history)
        return history, items, shop.features(items)

    def ranked(given: Part) -> Part:
        return given[1], rank(*given)

    def best(given: Part) -> list[tuple[int, float]]:
        items, chances = given
        first = chances.topk(SHOWN)
        rows = items[first.indices].tolist()
        return [(names[row], chance) for row, chance in zip(rows, first.values.tolist(), strict=True)]

    return {"encode": encode, f"retrieve {RETRIEVED}": retrieved, "rank": ranked, f"return {SHOWN}": best}


def plain(shop: Shop, towers: Towers, ranker: Taste) -> Way:
    """By the models as they were trained; the vectors of all articles are computed once."""
    articles = torch.arange(1 + SPARE, len(towers.items.weight))
    with torch.no_grad():
        offers = towers.article(articles, shop.features(articles))

    @torch.no_grad()
    def retrieve(history: Tensor) -> Tensor:
        return articles[(offers @ towers.customer(history)[0]).topk(RETRIEVED).indices]

    @torch.no_grad()
    def rank(history: Tensor, items: Tensor, about: Tensor) -> Tensor:
        return ranker(history.expand(len(items), -1), items, about)

    return request(shop, len(towers.items.weight), retrieve, rank)


def served(shop: Shop, known: int, towers: fastrec.CompressedModel, ranker: fastrec.CompressedModel) -> Way:
    """By the compressed models: a scorer of all articles, and a ranker that is given the history once."""
    articles = torch.arange(1 + SPARE, known)
    catalogue = towers.precompute({"item": articles, "about": shop.features(articles)})

    def retrieve(history: Tensor) -> Tensor:
        return articles[catalogue.topk({"history": history}, RETRIEVED)[1]]

    return request(shop, known, retrieve, ranker)


def compressed(model: nn.Module, part: Part, held: Part, folder: Path, seconds: float) -> fastrec.CompressedModel:
    """In int8, for one customer and 200 articles, within a loss that is certified by rows held back; as it is loaded again."""
    fastrec.compress(
        model,
        tuple(x[:RETRIEVED] for x in part[:-1]),
        request_features=["history"],
        recipe=RECIPE,
        calibration=batches(part),
        evaluate=judged(held),
        budget=BUDGET,
        batch_sizes=(RETRIEVED,),
        seconds=seconds,
    ).save(folder)
    return fastrec.load(folder)


def quality(shop: Shop, way: Way, wanted: Wanted, customers: Sequence[int]) -> tuple[Lists, list[str]]:
    """What customers are shown; and how good the retrieved are, the first of them, and what is shown."""
    bought, rank = [items for _, items in wanted], list(way)[2]
    found = [through(way, customer, rank)[1] for customer in customers]
    shown = [torch.tensor([shop.known[item] for item, _ in through(way, one)]) for one in customers]
    first = ndcg([items[:SHOWN] for items in found], bought)
    return shown, [f"{x:.4f}" for x in (recall(found, bought), first, ndcg(shown, bought))]


def story(folder: Path, short: bool) -> list[str]:
    """The whole way, the compressed models being kept in a folder."""
    torch.manual_seed(0)
    rng, shop, lines = torch.Generator().manual_seed(0), Shop(), cleaned()
    lines = lines[lines.user % (4 if short else 1) == 0]
    past = lines[lines.week < FIRST]
    now, later = (lines[lines.week.between(week, week + WEEKS - 1)] for week in (FIRST, FIRST + WEEKS))
    shop.learn(past)
    factors, known = shop.factors(past), len(shop.price)
    part, held = apart(taken_in(shop, past, rng))
    towers, ranker = Towers(factors), Taste(factors, Attention(WIDTH))
    for rate in (2e-3, 1e-3):
        learn_towers(towers, part, rate)
        learn(ranker, part, rate)
    models = {"towers": towers, "ranker": ranker}
    seconds = 15 if short else 60
    fast = {name: compressed(model, part, held, folder / name, seconds) for name, model in models.items()}
    print(*(f"{name}: {one.report}" for name, one in fast.items()), sep="\n\n")

    customers, wanted = sorted(now.user.unique().tolist()), shop.wanted(now)
    ways = {"before": plain(shop, **models), "after": served(shop, known, **fast)}
    (was, before), (shown, after) = (quality(shop, way, wanted, customers) for way in ways.values())
    heads = (f"recall@{RETRIEVED} of retrieval", f"NDCG@{SHOWN} of retrieval alone", f"NDCG@{SHOWN} of the whole")
    rows = [*zip(heads, before, after, strict=True)]
    rows += [(f"the same among the {SHOWN} shown", "", f"{recall(shown, was):.1%}")]
    sizes = models.values(), [one.program.model for one in fast.values()]
    rows += [("tensors of both models", *(amount(sum(map(tensor_bytes, some))) for some in sizes))]
    told = [table([f"weeks {FIRST} to {FIRST + WEEKS - 1}", *ways], rows)]
    told += [table(["step", *ways, "faster by"], timed(ways, customers, 2 if short else 10))]

    shop.learn(now)
    seen, (news, held) = feedback(shop, wanted[::10], shown[::10]), apart(taken_in(shop, now, rng))
    for model in models.values():
        model.grow(len(shop.price))
    learn_towers(towers, news, 5e-4)
    learn(ranker, [torch.cat(both) for both in zip(seen, news, strict=True)], 5e-4)
    given = {"calibration": batches(news), "evaluate": judged(held), "budget": BUDGET}
    new = {name: fastrec.update(folder / name, model, **given) for name, model in models.items()}
    customers, wanted = sorted(later.user.unique().tolist()), shop.wanted(later)
    ways = {"not updated": served(shop, known, **fast), "updated": served(shop, len(shop.price), **new)}
    rows = [*zip(heads, *(quality(shop, way, wanted, customers)[1] for way in ways.values()), strict=True)]
    rows += [("seconds of both updates", "", f"{sum(one.report.seconds for one in new.values()):.1f}")]
    return [*told, table([f"weeks {FIRST + WEEKS} to {FIRST + 2 * WEEKS - 1}", *ways], rows)]


def main(short: bool = False) -> list[str]:
    """The tables of what was measured; `short` with every fourth customer."""
    with tempfile.TemporaryDirectory() as scratch:
        return story(Path(scratch), short)


if __name__ == "__main__":
    run(main, __doc__)
