"""How fast a case could be: the work that remains, over the rates of this machine.

Per operator call the longest of its times is taken: multiply-adds of products, those of 8-bit integers apart, rows looked
up at random, and bytes read and written, each over the rate at which one thread of this machine was seen to do nothing
else. Other arithmetic is left out, and so are results that a compiler need not write: those of elementwise calls that only
elementwise calls and sums read. So this is a bound for a plan of these calls, not a forecast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload

from fastrec.backends import OnnxRuntime, Session
from fastrec.capture import capture
from fastrec.cost import Cost, costs, per_candidate, per_request
from fastrec.graph import VIEWS, operator_name
from fastrec.program import Program
from fastrec.techniques import QuantizeLinears

from .models import FIELDS, ROWS, WIDTH

__all__ = ["Rates", "Remaining", "ceiling", "measure_rates", "remaining"]

REPEATS = 200
# Rows, inputs and outputs of the layers that the standard cases spend their time in.
PRODUCTS = ((100, 400, 400), (500, 400, 400), (500, 512, 256))
LOOKUP_ROWS = 500


@dataclass(frozen=True)
class Rates:
    """What one thread does in a second at best.

    float32 multiply-adds of a matrix product, bytes that an elementwise call writes, rows of 64 bytes looked up at
    random in tables beyond the caches, and multiply-adds of a product of 8-bit integers (0: not measured).
    """

    multiply_adds: float
    bytes: float
    lookups: float
    of_codes: float = 0.0

    def seconds(self, cost: Cost) -> float:
        """The least time for one call."""
        return max(
            (cost.multiply_adds - cost.of_codes) / self.multiply_adds,
            cost.of_codes / (self.of_codes or self.multiply_adds),
            cost.bytes / self.bytes,
            cost.lookups / self.lookups,
        )


@dataclass(frozen=True)
class Remaining:
    """Multiply-adds per candidate of the model and of the program that serves, those once per request, and the rates."""

    before: float
    after: float
    request: float
    rates: Rates


def remaining(before: Program, after: Program, rates: Rates) -> Remaining:
    """What is left to do of a captured model in the program that stands for it."""
    return Remaining(per_candidate(before), per_candidate(after), per_request(after), rates)


def ceiling(program: Program, rows: int, rates: Rates) -> float:
    """Seconds that one call of a captured program takes at the least."""
    return math.fsum(
        rates.seconds(found) for node, found in costs(program, rows) if not _need_not_be_written(node)
    )


def measure_rates(clock: Callable[[], int] = time.perf_counter_ns) -> Rates:
    """The rates of this machine with the threads that torch has; the best of many tries each. Cost: some seconds."""
    generator = torch.Generator().manual_seed(0)

    def best(call: Callable[[], object], draw: Callable[[], object] = lambda: None) -> float:
        taken = []
        for _ in range(REPEATS):
            draw()
            start = clock()
            call()
            taken.append(clock() - start)
        return min(taken) / 1e9

    with torch.inference_mode():
        products = []
        for rows, inner, outer in PRODUCTS:
            x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
            products.append(rows * inner * outer / best(partial(F.linear, x, weight)))
        x, y = torch.randn(500, 400), torch.empty(500, 400)
        written = x.nbytes / best(lambda: torch.clamp_min(x, 0.0, out=y))
        table = torch.zeros(FIELDS * ROWS, WIDTH).fill_(1.0)
        ids = torch.empty(LOOKUP_ROWS, FIELDS, dtype=torch.int64)

        def draw() -> Tensor:
            return ids.random_(FIELDS * ROWS, generator=generator)

        looked_up = min(
            best(lambda: F.embedding(ids, table), draw),
            best(lambda: F.embedding_bag(ids, table, mode="sum"), draw),
        )
        of_codes = [
            rows * inner * outer / best(partial(_of_codes(rows, inner, outer), torch.randn(rows, inner)))
            for rows, inner, outer in PRODUCTS
        ]
    return Rates(max(products), written, ids.numel() / looked_up, max(of_codes))


def _of_codes(rows: int, inner: int, outer: int) -> Session:
    """A linear map in 8-bit integers alone, by the library that runs them."""
    tower = torch.nn.Linear(inner, outer).eval()
    captured = capture(Program.read(tower, torch.randn(rows, inner)))
    return OnnxRuntime().compile(captured.with_model(QuantizeLinears(least=0).apply(captured).model))


def _is_elementwise(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def _need_not_be_written(node: fx.Node) -> bool:
    """Whether a compiler can work the result out where it is read, element by element."""
    readers = list(_readers(node))
    return _is_elementwise(node) and bool(readers) and all(map(_takes_elements, readers))


def _takes_elements(node: fx.Node) -> bool:
    tags = node.target.tags if isinstance(node.target, OpOverload) else []
    return torch.Tag.pointwise in tags or torch.Tag.reduction in tags


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads the elements, seen through views."""
    for user in node.users:
        if operator_name(user) in VIEWS and not _is_elementwise(user):
            yield from _readers(user)
        else:
            yield user
