"""The choice of ways: small enough where it can be, and near the best of all choices."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.techniques.fitting.choice import Cost, cheapest

WAYS = st.lists(st.builds(Cost, st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(things=st.lists(WAYS, min_size=1, max_size=4), limit=st.integers(0, 150))
def test_the_choice_is_small_enough_and_near_the_best(things: list[list[Cost]], limit: int) -> None:
    taken = cheapest(things, limit)
    chosen = [ways[w] for ways, w in zip(things, taken, strict=True)]
    every = list(itertools.product(*things))
    fitting = [choice for choice in every if sum(cost.bytes for cost in choice) <= limit]
    if not fitting:
        assert [c.bytes for c in chosen] == [min(cost.bytes for cost in ways) for ways in things]
        return
    assert sum(cost.bytes for cost in chosen) <= limit
    loss, best = (sum(cost.loss for cost in choice) for choice in (chosen, min(fitting, key=_loss)))
    # Nothing alone could still be bettered, and with room enough nothing is lost.
    left = limit - sum(cost.bytes for cost in chosen)
    assert not any(
        cost.loss < now.loss and cost.bytes - now.bytes <= left
        for ways, now in zip(things, chosen, strict=True)
        for cost in ways
    )
    if len(things) == 1:
        assert loss == best
    # Off by what one thing can lose at most: one step of the hull.
    assert loss <= best + max(max(c.loss for c in ways) - min(c.loss for c in ways) for ways in things) + 1e-9


def _loss(choice: tuple[Cost, ...]) -> float:
    return sum(cost.loss for cost in choice)
