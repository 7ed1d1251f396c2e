"""An online shop, the whole way: clean, encode, embed, train, compress, serve a request, take feedback, update.

`python examples/ecommerce.py`, or with `--short`. Of all articles two towers retrieve 200 for a customer, of these a deep interest
network ranks the ten that are shown. What comes of it is simulated by what customers really bought.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from shop import SPARE, WIDTH, Shop, cleaned
from taste import SHOWN, Articles, Taste, judged, learn
from told import Way, ndcg, recall, run, table, through, timed
from torch import Tensor, nn
from towers import Attention, among, apart, averaged, passed
from traffic import Wanted, batches, feedback, taken_in

import fastrec
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.wording import duration

FIRST, WEEKS = 44, 4
"""The first week that is served, and how many until the models are updated."""
RETRIEVED = 200
BUDGET = fastrec.Budget({"auc": 0.002})
Part = Sequence[Tensor]


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
    towers: Towers,
    customer: Callable[[Tensor], Tensor],
    rank: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Way:
    """The steps of a request; the vectors of all articles that the towers know are computed now, once."""
    names, known = {row: item for item, row in shop.known.items()}, len(towers.items.weight)
    articles = torch.arange(1 + SPARE, known)
    with torch.no_grad():
        offers = towers.article(articles, shop.features(articles))

    def encode(user: int) -> Tensor:
        history = shop.history(user)
        return history.where(history < known, 0)[None]

    def retrieved(history: Tensor) -> Part:
        items = articles[(offers @ customer(history)[0]).topk(RETRIEVED).indices]
        return history, items, shop.features(items)

    def ranked(given: Part) -> Part:
        return given[1], rank(*given)

    def best(given: Part) -> list[tuple[int, float]]:
        items, chances = given
        first = chances.topk(SHOWN)
        rows = items[first.indices].tolist()
        return [(names[row], chance) for row, chance in zip(rows, first.values.tolist(), strict=True)]

    return {"encode": encode, f"retrieve {RETRIEVED}": retrieved, "rank": ranked, f"return {SHOWN}": best}


def plain(ranker: Taste) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The ranker as it was trained, which takes the history once for each article."""
    return torch.no_grad()(lambda history, *about: ranker(history.expand(len(about[0]), -1), *about))


def compressed(
    towers: Towers, ranker: Taste, part: Part, held: Part, folder: Path, seconds: float
) -> list[fastrec.CompressedModel]:
    """The customer's tower, exactly, for one; the ranker in int8, if rows held back certify it, for 200 articles of one request."""
    customer = fastrec.compress(towers.customer, (part[0][:32],), batch_sizes=(1,), seconds=seconds)
    rank = fastrec.compress(
        ranker,
        tuple(x[:RETRIEVED] for x in part[:-1]),
        request_features=["history"],
        recipe=[Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()],
        calibration=batches(part),
        evaluate=judged(held),
        budget=BUDGET,
        batch_sizes=(RETRIEVED,),
        seconds=2 * seconds,
    )
    customer.save(folder / "customer")
    rank.save(folder / "ranker")
    return [fastrec.load(folder / name) for name in ("customer", "ranker")]


def quality(shop: Shop, way: Way, wanted: Wanted, users: Sequence[int]) -> tuple[list[Tensor], list[str]]:
    """What customers are shown; and how good the retrieved are, the first of them, and what is shown."""
    bought, rank = [items for _, items in wanted], list(way)[2]
    found = [through(way, user, rank)[1] for user in users]
    shown = [torch.tensor([shop.known[item] for item, _ in through(way, user)]) for user in users]
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
    factors = shop.factors(past)
    part, held = apart(taken_in(shop, past, rng))
    towers, ranker = Towers(factors), Taste(factors, Attention(WIDTH))
    for rate in (2e-3, 1e-3):
        for _ in range(3):
            learn_towers(towers, part, rate)
        learn(ranker, part, rate)
    fast = compressed(towers, ranker, part, held, folder, 10 if short else 30)
    print(*(one.report for one in fast), sep="\n\n")

    users, wanted = sorted(now.user.unique().tolist()), shop.wanted(now)
    ways = {
        "before": request(shop, towers, torch.no_grad()(towers.customer), plain(ranker)),
        "after": request(shop, towers, *fast),
    }
    (was, before), (shown, after) = (quality(shop, way, wanted, users) for way in ways.values())
    heads = (
        f"recall@{RETRIEVED} of retrieval",
        f"NDCG@{SHOWN} of retrieval alone",
        f"NDCG@{SHOWN} of the whole",
    )
    rows = [*zip(heads, before, after, strict=True)]
    rows += [(f"the same among the {SHOWN} shown", "", f"{recall(shown, was):.1%}")]
    told = [table([f"weeks {FIRST} to {FIRST + WEEKS - 1}", *ways], rows)]
    told += [table(["step", *ways, "faster by"], timed(ways, users, 2 if short else 10))]

    shop.learn(now)
    seen, (news, held) = feedback(shop, wanted[::10], shown[::10]), apart(taken_in(shop, now, rng))
    first = copy.deepcopy(towers)
    for model in (towers, ranker):
        model.grow(len(shop.price))
    learn_towers(towers, news, 5e-4)
    learn(ranker, [torch.cat(both) for both in zip(seen, news, strict=True)], 5e-4)
    how = {"calibration": batches(news), "evaluate": judged(held), "budget": BUDGET}
    try:  # first what may be refused, so that both are updated or none is
        new = [fastrec.update(folder / "ranker", ranker, **how)]
        new = [fastrec.update(folder / "customer", towers.customer), *new]
    except fastrec.UpdateRefused as refused:
        return [*told, f"The models of before go on: {refused}"]
    users, wanted = sorted(later.user.unique().tolist()), shop.wanted(later)
    ways = {"not updated": request(shop, first, *fast), "updated": request(shop, towers, *new)}
    rows = [*zip(heads, *(quality(shop, way, wanted, users)[1] for way in ways.values()), strict=True)]
    rows += [("both updates, compiled and certified", "", duration(sum(one.report.seconds for one in new)))]
    return [*told, table([f"weeks {FIRST + WEEKS} to {FIRST + 2 * WEEKS - 1}", *ways], rows)]


def main(short: bool = False) -> list[str]:
    """The tables of what was measured; `short` with every fourth customer."""
    with tempfile.TemporaryDirectory() as scratch:
        return story(Path(scratch), short)


if __name__ == "__main__":
    run(main, __doc__)
