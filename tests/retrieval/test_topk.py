"""The best rows of an item matrix, as scoring all of them finds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrec import IdOutOfRangeError, InputError, TopK
from fastrec.retrieval.codes import Codes, integer_products
from fastrec.retrieval.pq import Centroids
from fastrec.retrieval.products import Prefix, Products
from fastrec.retrieval.read import read_seen
from fastrec.retrieval.scan import scan
from fastrec.retrieval.searches import AllScores, Scanned, Search
from fastrec.retrieval.stored import Stored
from fastrec.retrieval.ways import Way

EXACT = ("all scores", "products", "prefix", "int8 bounds")


def brute(items: Tensor, queries: Tensor, k: int, seen: Any = None) -> tuple[Tensor, Tensor]:
    """All scores, sorted: those of seen rows last, as none."""
    scores = (items.double()[None] * queries.double()[:, None]).sum(2).float()
    for query, rows in enumerate(seen or ()):
        scores[query, [row for row in rows if row >= 0]] = -torch.inf
    best = scores.sort(dim=1, descending=True, stable=True)
    values = best.values[:, :k]
    return values, best.indices[:, :k].masked_fill(values == -torch.inf, -1)


def matrix(kind: str, rows: int, width: int, generator: torch.Generator) -> Tensor:
    made = torch.randn(rows, width, generator=generator)
    if kind == "clustered":
        centres = torch.randn(3, width, generator=generator)
        made = centres[torch.randint(3, (rows,), generator=generator)] + 1e-4 * made
    elif kind == "tied":
        made = made[torch.randint(max(1, rows // 50), (rows,), generator=generator)]
    elif kind == "constant":
        made = made[:1].repeat(rows, 1)
    elif kind == "whole":
        made = made.round()
    elif kind == "skewed":
        made = made * torch.rand(rows, 1, generator=generator) ** 4 * torch.logspace(0, -3, width)
    elif kind == "spikes":
        made = made * 1e-3
        made[torch.arange(rows), torch.randint(width, (rows,), generator=generator)] = 7.0
    elif kind == "zero":
        made = made * 0
    elif kind == "tiny":
        made = made * 1e-30
    return made


def ways(stored: Stored) -> list[Way]:
    made: list[Way] = [Products(stored), Codes(stored)]
    return [*made, Prefix(stored, stored.width // 2)] if stored.width > 1 else made


def searches(stored: Stored) -> list[Search]:
    return [AllScores(stored), *(Scanned(stored, way) for way in ways(stored))]


KINDS = ("random", "clustered", "tied", "constant", "whole", "skewed", "spikes", "zero", "tiny")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_exact_way_is_brute_force(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    rows = data.draw(st.sampled_from([1, 2, 31, 32, 33, 500, 4096, 4097, 9000]))
    width = data.draw(st.sampled_from([1, 3, 16, 17]))
    number = data.draw(st.sampled_from([1, 2, 9]))
    items = matrix(data.draw(st.sampled_from(KINDS)), rows, width, generator)
    queries = matrix(data.draw(st.sampled_from(KINDS)), number, width, generator)
    k = min(rows, data.draw(st.sampled_from([1, 2, 10, 100, 10_000])))
    seen = None
    if data.draw(st.booleans()):
        most = data.draw(st.sampled_from([1, 20, rows + 5]))
        seen = [torch.randint(-1, rows, (most,), generator=generator).tolist() for _ in range(number)]
    expected = brute(items, queries, k, seen)
    stored = Stored(items)
    left_out = None if seen is None else read_seen(seen, stored, number)
    for way in searches(stored):
        found = way.find(queries, k, left_out)
        assert torch.equal(found.rows, expected[1]), way.name
        assert torch.equal(found.scores, expected[0]), way.name


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_of_matrix_at_many_blocks(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    items, queries = matrix(kind, 20_000, 24, generator), torch.randn(5, 24, generator=generator)
    expected, stored = brute(items, queries, 10), Stored(items)
    for way in searches(stored):
        found = way.find(queries, 10, None)
        assert torch.equal(found.rows, expected[1]), way.name
        assert torch.equal(found.scores, expected[0]), way.name


class _Noted:
    """A way that notes which blocks it is asked for, and for how many queries."""

    def __init__(self, way: Way) -> None:
        self.way, self.name, self.exact, self.nbytes = way, way.name, way.exact, way.nbytes
        self.blocks = 0

    def ask(self, queries: Tensor) -> Any:
        asked = self.way.ask(queries)
        plain = asked.estimates

        def estimates(first: int, last: int) -> Tensor:
            self.blocks = max(self.blocks, last)
            return plain(first, last)

        asked.estimates = estimates  # type: ignore[method-assign]  # to see what is asked for
        return asked


def test_blocks_too_short_to_reach_are_not_looked_at() -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(60_000, 16, generator=generator)
    items[::100] *= 100
    stored = Stored(items)
    way = _Noted(Codes(stored))
    found = scan(stored, way, torch.randn(1, 16, generator=generator), 10, None)
    assert way.blocks == 1 < stored.blocks and (found.rows % 100 == 0).all()


def test_limits_hold_for_every_row() -> None:
    # The promise of a bound: no row that reaches a score has an estimate below the limit of that score.
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        items, queries = matrix(kind, 3000, 20, generator), matrix(kind, 4, 20, generator)
        stored = Stored(items)
        exact = (items[stored.order].double() @ queries.double().T).float()
        for way in ways(stored):
            asked = way.ask(queries)
            estimates = asked.estimates(0, stored.blocks)[: stored.count]
            for row in (0, 17, 2999):
                limits = asked.limits(0, stored.blocks, exact[row].double())
                reach = exact >= exact[row]
                assert (estimates >= limits[0])[reach].all(), (kind, way.name)


@cache
def films() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(7000, 32, generator=generator), torch.randn(40, 32, generator=generator)


def test_the_index_serves_what_it_measured() -> None:
    items, queries = films()
    index = TopK(items, queries=queries, batches=(1, 8), seconds=0.01)
    assert index.report.exact and index.report.recall == 1.0 and not index.report.drawn
    assert {timed.way for timed in index.report.timed} >= set(
        EXACT if integer_products(32) is None else EXACT[:3]
    ) - set(index.report.absent)
    for batch in (1, 8):
        there = [timed for timed in index.report.timed if timed.batch == batch]
        (serving,) = [timed for timed in there if timed.serves]
        assert serving.seconds == min(timed.seconds for timed in there)
    expected = brute(items, queries, 10)
    for number in (0, 1, 3, 40):
        scores, rows = index(queries[:number], 10)
        assert torch.equal(rows, expected[1][:number]) and torch.equal(scores, expected[0][:number])
    assert index.tune(k=3).drawn and index.report.k == 3
    assert "items drawn as queries" in str(index.report) and "exact" in str(index.report)


@pytest.mark.parametrize("way", EXACT)
def test_seen_rows_are_left_out(way: Any) -> None:
    items, queries = films()
    index = TopK(items, way=way, batches=(16,), seconds=0.01)
    assert {timed.way.partition(" ")[0] for timed in index.report.timed} == {way.partition(" ")[0]}
    best = index(queries, 20)[1]
    padded = torch.where(torch.arange(20) % 2 == 0, best, -1)
    for seen in (padded, list(padded), [[row for row in rows if row >= 0] for rows in padded.tolist()]):
        scores, rows = index(queries, 10, seen)
        assert torch.equal(rows, best[:, 1::2])
    everything = [torch.arange(7000)] * 39 + [torch.arange(1, 6999)]
    scores, rows = index(queries, 3, everything)
    assert (rows[:-1] == -1).all() and (scores[:-1] == -torch.inf).all()
    assert sorted(rows[-1].tolist()) == [-1, 0, 6999]
    assert torch.equal(index(queries, 10, [[]] * 40)[1], best[:, :10])


@pytest.mark.parametrize("prefilter", ["int8", "pq"])
def test_a_prefilter_is_scored_again_and_its_recall_said(prefilter: Any) -> None:
    items, queries = films()
    index = TopK(items, queries=queries, prefilter=prefilter, candidates=50, batches=(40,), seconds=0.01)
    scores, rows = index(queries, 10)
    expected = brute(items, queries, 10)[1]
    recall = (expected[:, :, None] == rows[:, None]).any(2).float().mean().item()
    assert not index.report.exact and index.report.recall == pytest.approx(recall, abs=1e-6)
    assert recall > (0.99 if prefilter == "int8" else 0.3)
    assert torch.equal(scores, (items[rows].double() * queries[:, None].double()).sum(2).float())
    # With every row a candidate nothing is lost.
    whole = TopK(items, queries=queries, prefilter=prefilter, candidates=7000, batches=(4,), seconds=0.01)
    assert whole.report.recall == 1.0
    best = index(queries, 5)[1]
    assert not (index(queries, 5, best)[1][:, :, None] == best[:, None]).any()


def test_pq_is_nearer_than_chance_and_smaller() -> None:
    items, queries = films()
    stored = Stored(items)
    way = Centroids(stored)
    estimates = way.ask(queries).estimates(0, stored.blocks)[: stored.count]
    exact = items[stored.order] @ queries.T
    assert torch.corrcoef(torch.stack([estimates.flatten(), exact.flatten()]))[0, 1] > 0.8
    assert way.codes.shape[1] * 32 == items[0].nbytes


def test_what_does_not_fit_is_said() -> None:
    items, queries = films()
    index = TopK(items, batches=(4,), seconds=0.01, way="products")
    cases: list[tuple[Any, str]] = [
        (lambda: index(queries, 7001), r"7,001.*7,000"),
        (lambda: index(queries, 0), "from 1 on"),
        (lambda: index(queries, True), "from 1 on"),
        (lambda: index(queries[:, :31], 1), r"\(40, 31\).*\(n, 32\)"),
        (lambda: index(queries[0], 1), r"\(32,\)"),
        (lambda: index(queries.double(), 1), "float64"),
        (lambda: index(torch.full((2, 32), torch.nan), 1), "queries, row 0"),
        (lambda: index(queries * 1e37, 1), "overflow"),
        (lambda: index(queries, 1, [[1]]), "1 queries, expected 40"),
        (lambda: index(queries, 1, [[0.5]] * 40), "query 0"),
        (lambda: index.tune(queries[:0]), "none"),
        (lambda: TopK(items[:0]), "at least one"),
        (lambda: TopK(items.numpy()), "ndarray"),  # type: ignore[arg-type]  # the point of it
        (lambda: TopK(torch.cat([items, items[:1] * torch.inf])), "items, row 7000"),
        (lambda: TopK(items * 5e37), "row [0-9]+: its length"),
        (lambda: TopK(items, k="2"), "k: got"),  # type: ignore[arg-type]  # the point of it
        (lambda: TopK(items, way="best"), "'best'"),  # type: ignore[arg-type]  # the point of it
        (lambda: TopK(items[:, :4], way="prefix"), "narrow"),
        (lambda: TopK(items, prefilter="float"), "'float'"),  # type: ignore[arg-type]  # the point of it
        (lambda: TopK(items, candidates=5), "prefilter"),
        (lambda: TopK(items, batches=()), "batches"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
    for row in (7000, -2):
        with pytest.raises(IdOutOfRangeError, match=f"query 1: got row {row}"):
            index(queries[:2], 1, [[0], [row]])


def test_without_queries_even_long_items_can_be_measured() -> None:
    items, queries = films()
    found = TopK(items * 1e30, batches=(2,), seconds=0.01)(queries, 10)
    assert torch.equal(found[1], brute(items * 1e30, queries, 10)[1])


def test_a_query_is_answered_alike_in_any_company() -> None:
    items, queries = films()
    index = TopK(items, way="int8 bounds", batches=(64,), seconds=0.01)
    together = index(queries, 10)
    for i in (0, 20, 39):
        alone = index(queries[i : i + 1], 10)
        assert torch.equal(alone[0][0], together[0][i]) and torch.equal(alone[1][0], together[1][i])


def test_rows_that_score_alike_come_by_number_whatever_there_are_of_them() -> None:
    items = torch.randn(9000, 8, generator=torch.Generator().manual_seed(0))
    items[4000:] = items[4000]
    queries = torch.cat([torch.zeros(2, 8), items[4000:4001], torch.randn(1, 8)])
    for made in (Codes, Products):
        search = Scanned(stored := Stored(items), made(stored))
        for seen in (None, read_seen([[0, 2], [1], [4001], []], stored, 4)):
            found, right = search.find(queries, 5, seen), AllScores(stored).find(queries, 5, seen)
            assert torch.equal(found.rows, right.rows) and torch.equal(found.scores, right.scores)
    assert TopK(torch.zeros(50, 4), batches=(1,))(torch.ones(1, 4), 3)[1].tolist() == [[0, 1, 2]]
