"""From raw lines to answers and round again: clean, encode, factorise, train, compress, serve, listen, learn, update.

`python examples/daily_loop.py`. Feedback is simulated by what customers really bought: of what they are shown, that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from shop import Shop, cleaned
from taste import SHOWN, Taste, judged, learn, quality
from torch import Tensor
from traffic import batches, feedback, taken_in

import fastrec

FIRST, WEEKS = 16, 4
"""The first week that is served, and the weeks of a round."""
BUDGET = fastrec.Budget({"auc": 0.002})


def best(fast: fastrec.CompressedModel, shop: Shop, histories: Sequence[Tensor], known: int) -> list[Tensor]:
    """The articles that each customer is shown, of all that the model knows."""
    items = torch.arange(1, known)
    catalogue = fast.precompute({"item": items, "about": shop.features(items)})
    return [
        items[catalogue.topk({"history": history.where(history < known, 0)[None]}, SHOWN)[1]]
        for history in histories
    ]


def main(rounds: int = 9, seconds: float = 120) -> None:
    """One model that is trained once, one that learns every round, and both served compressed."""
    torch.manual_seed(0)
    rng, shop, lines = torch.Generator().manual_seed(0), Shop(), cleaned()
    past = lines[lines.week < FIRST]
    shop.learn(past)
    at_first = served = len(shop.price)
    model = Taste(shop.factors(past))
    known = taken_in(shop, past, rng)
    learn(model, known, 2e-3)
    fast = fastrec.compress(
        model, tuple(x[:200] for x in known[:-1]), request_features=["history"], calibration=batches(known),
        evaluate=judged(known), budget=BUDGET, seconds=seconds,
    )  # fmt: skip
    print(fast.report.headline)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "taste"
        fast.save(folder)
        # What was loaded goes on as it is, whatever the model learns and the folder holds then.
        first = fastrec.load(folder)
        for week in range(FIRST, FIRST + rounds * WEEKS, WEEKS):
            lately = lines[lines.week.between(week, week + WEEKS - 1)]
            wanted = shop.wanted(lately)
            histories, bought = zip(*wanted, strict=True)
            began = time.perf_counter()
            shown = best(fastrec.load(folder), shop, histories, served)
            each = 1e3 * (time.perf_counter() - began) / len(shown)
            print(f"week {week}: {len(shown)} customers, {each:.1f} ms each: {quality(shown, bought)}")
            print(
                f"    had it learned nothing since: {quality(best(first, shop, histories, at_first), bought)}"
            )
            shop.learn(lately)
            model.grow(len(shop.price))
            seen, news = feedback(shop, wanted[::10], shown[::10]), taken_in(shop, lately, rng)
            learn(model, [torch.cat(both) for both in zip(seen, news, strict=True)], 5e-4)
            try:
                fastrec.update(folder, model, calibration=batches(news), evaluate=judged(news), budget=BUDGET)
                served = len(shop.price)
            except fastrec.UpdateRefused as refused:
                print(f"    the model of before goes on: {refused}")


if __name__ == "__main__":
    main()
