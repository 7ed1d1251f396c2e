"""A catalogue of 100,000 candidates against the model's own forward: `pytest -s benchmarks/test_precompute.py`.

The best ten of the whole catalogue are compared with brute force for 1,000 requests, and timed, turn by turn, beside
the model's forward over 1,000 candidates. Brute force is the model's forward over all candidates; as its item tower
gives the same vectors for every request, these are computed once, which changes no bit (seen on the first requests).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.guards import read_guard
from fastrec.measure import interleaved
from fastrec.program import Program
from fastrec.request import ask
from fastrec.serving.scorer import Scorer, precompute
from fastrec.techniques import Fuse

from .models import CASES, ROWS, TwoTower

CANDIDATES, REQUESTS, BEST, USUAL = 100_000, 1_000, 10, 1_000
WHOLE, TOGETHER = 2, 250


@dataclass(frozen=True)
class Known:
    """The model, the catalogue (M, 6) and its scorer."""

    model: TwoTower
    items: Tensor
    scorer: Scorer


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def known() -> Known:
    case = CASES["two_tower"]
    model, generator = case.build(), torch.Generator().manual_seed(0)
    assert isinstance(model, TwoTower)
    program = Program.read(model, case.make_batch(8, generator))
    features = read_request(program.layout.features, ["user"])
    program = replace(program, layout=replace(program.layout, features=features))
    asked = ask(capture(program))
    items = torch.randint(ROWS, (CANDIDATES, 6), generator=generator)
    fast = asked.with_model(Fuse().apply(asked).model)
    return Known(model, items, precompute(program, fast, {"item": items}, guard=read_guard(asked)))


def _user(generator: torch.Generator) -> Tensor:
    return torch.randint(ROWS, (1, 8), generator=generator)


def test_best_of_all(benchmark: Any, known: Known) -> None:
    generator = torch.Generator().manual_seed(1)
    call = known.scorer.topk
    values, rows = benchmark.pedantic(call, setup=lambda: (((_user(generator),), BEST), {}), rounds=100)
    assert values.shape == rows.shape == (BEST,)


def test_forward_of_a_thousand(benchmark: Any, known: Known) -> None:
    generator = torch.Generator().manual_seed(1)
    draw = CASES["two_tower"].make_batch
    scores = benchmark.pedantic(known.model, setup=lambda: (draw(USUAL, generator), {}), rounds=100)
    assert scores.shape == (USUAL,)


def test_as_brute_force(known: Known) -> None:
    model, generator = known.model, torch.Generator().manual_seed(2)
    vectors = torch.cat([table(known.items[:, i]) for i, table in enumerate(model.item_tables)], dim=1)
    right = F.normalize(model.item_tower(vectors), dim=-1)
    equal = 0
    for request in range(REQUESTS):
        user = _user(generator)
        many = user.expand(TOGETHER, -1)
        fields = torch.cat([table(many[:, i]) for i, table in enumerate(model.user_tables)], dim=1)
        left = F.normalize(model.user_tower(fields), dim=-1)
        scores = (left * right.view(-1, TOGETHER, right.shape[1])).sum(dim=-1).flatten()
        if request < WHOLE:
            assert torch.equal(scores, model(user.expand(CANDIDATES, -1).contiguous(), known.items))
        best = scores.sort(descending=True, stable=True).indices[:BEST]
        equal += torch.equal(known.scorer.topk((user,), BEST)[1], best)
    assert equal == REQUESTS


def test_beside_a_forward_of_a_thousand(known: Known) -> None:
    generator = torch.Generator().manual_seed(3)
    draw = CASES["two_tower"].make_batch
    samples = interleaved(
        {
            "forward": lambda given: known.model(*given),
            "topk": lambda given: known.scorer.topk((given[0][:1],), BEST),
        },
        lambda _: draw(USUAL, generator),
        rounds=200,
    )
    ratio, forward, topk = (
        samples.ratio("forward", "topk"),
        samples.latency("forward"),
        samples.latency("topk"),
    )
    print(
        f"\ntwo_tower, one thread: best {BEST} of {CANDIDATES:,} {topk.p50 * 1e3:.2f} ms, model's forward over {USUAL:,} "
        f"{forward.p50 * 1e3:.2f} ms, paired ratio {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, n={ratio.n})"
    )
    assert ratio.n == 200
