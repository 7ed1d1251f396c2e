"""The compressed model: routes, fallbacks, refusals."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, IdOutOfRangeError, InputError, RequestMismatchError, compress
from fastrec.backends import Eager
from fastrec.report import Report


class Ranker(nn.Module):
    """Enough lookups for the rewrite to win."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 8) for _ in range(20))
        self.head = nn.Linear(20 * 8 + 3, 1)

    def forward(self, ids: Tensor, dense: Tensor, bias: float = 0.0) -> Tensor:
        rows = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        return torch.sigmoid(self.head(torch.cat([rows, dense], 1)) + bias).squeeze(1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Ranker().eval()


@pytest.fixture(scope="module")
def fast(model: nn.Module, served_anyway: None) -> CompressedModel:
    made = compress(model, batch(4), batch_sizes=(1, 64), seconds=4, backends=Eager(), progress=False)
    assert made.report.status == "improved"
    return made


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (rows, 20), generator=rng), torch.randn(rows, 3, generator=rng)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 33, 1000])
def test_any_number_of_rows(model: nn.Module, fast: CompressedModel, rows: int) -> None:
    ids, dense = batch(rows)
    torch.testing.assert_close(fast(ids, dense), model(ids, dense).detach())
    torch.testing.assert_close(fast(dense=dense, ids=ids), model(ids, dense).detach())


def test_narrow_integers_are_widened(model: nn.Module, fast: CompressedModel) -> None:
    ids, dense = batch(5)
    torch.testing.assert_close(fast(ids.int(), dense), model(ids, dense).detach())


def test_strides_and_gradients_of_the_batch_do_not_matter(model: nn.Module, fast: CompressedModel) -> None:
    ids, dense = batch(6)
    answer = fast(ids.t().contiguous().t(), dense.clone().requires_grad_())
    torch.testing.assert_close(answer, model(ids, dense).detach())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (lambda i, d: (i.float(), d), "'ids' has dtype torch.float32, expected torch.int64"),
        (lambda i, d: (i, d.double()), "'dense' has dtype torch.float64"),
        (lambda i, d: (i, d[:, :2]), r"'dense' has 2 columns, expected 3"),
        (lambda i, d: (i, d[:2]), "sizes do not agree"),
        (lambda i, d: (i,), "missing feature 'dense'"),
        (lambda i, d: (i, d, 1.0), "3 positional arguments"),
        (lambda i, d: (i, d.tolist()), "'dense': got list"),
    ],
)
def test_batches_that_do_not_fit(fast: CompressedModel, args: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fast(*args(*batch(4)))  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_ids_out_of_range(fast: CompressedModel, wrong: int) -> None:
    ids, dense = batch(4)
    ids[2, 7] = wrong
    with pytest.raises(IdOutOfRangeError, match="row 2") as caught:
        fast(ids, dense)
    assert (caught.value.feature, caught.value.row) == ("ids", 2)
    fast(*batch(4))


def test_it_stays_in_evaluation_mode(fast: CompressedModel) -> None:
    assert not fast.training and not fast.eval().training
    with pytest.raises(InputError, match="cannot be trained"):
        fast.train()


def test_threads(model: nn.Module, fast: CompressedModel) -> None:
    failures: list[str] = []

    def serve(seed: int) -> None:
        for i in range(20):
            ids, dense = batch(1 + (seed * 7 + i) % 40, seed * 100 + i)
            if not torch.allclose(fast(ids, dense), model(ids, dense).detach(), atol=1e-6):
                failures.append(f"{seed}/{i}")

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Ranked(nn.Module):
    """A user and a context column beside items: enough work on the user that once is faster."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.tower = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16)
        )

    def forward(self, user: Tensor, x: Tensor) -> Tensor:
        return (self.tower(user) * self.table(x[:, 0].long())).sum(1) + x[:, 1] + x[:, 2]


def ranked(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    user = torch.randn(1, 64, generator=rng).repeat(rows, 1)
    x = torch.cat(
        [torch.randint(50, (rows, 1), generator=rng).float(), torch.randn(rows, 2, generator=rng)], 1
    )
    x[:, 1] = 0.5
    return user, x


@pytest.fixture(scope="module")
def ranker() -> nn.Module:
    torch.manual_seed(0)
    return Ranked().eval()


@pytest.fixture(scope="module")
def served(ranker: nn.Module, served_anyway: None) -> CompressedModel:
    made = compress(
        ranker,
        ranked(8),
        request_features={"user": True, "x": [1]},
        batch_sizes=(64,),
        seconds=30,
        backends=Eager(),
        progress=False,
    )
    assert made.report.status == "improved"
    return made


@pytest.mark.parametrize("rows", [0, 1, 2, 33, 300])
def test_the_request_is_given_repeated_or_once(ranker: nn.Module, served: CompressedModel, rows: int) -> None:
    user, x = ranked(rows, seed=rows)
    expected = ranker(user, x).detach()
    torch.testing.assert_close(served(user, x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(served(ranked(1, seed=rows)[0], x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(served(x=x, user=user), expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_request_that_differ_are_refused(served: CompressedModel) -> None:
    user, x = ranked(6)
    user[4, 2] += 1
    with pytest.raises(RequestMismatchError, match="'user', row 4") as caught:
        served(user, x)
    assert (caught.value.feature, caught.value.row) == ("user", 4)
    user, x = ranked(6)
    x[5, 1] = 9.0
    with pytest.raises(RequestMismatchError, match="'x', row 5"):
        served(user, x)


def test_the_check_may_be_left_out(ranker: nn.Module) -> None:
    fast = compress(
        ranker,
        ranked(8),
        request_features=["user"],
        check_request=False,
        batch_sizes=(8,),
        seconds=2,
        backends=Eager(),
        progress=False,
    )
    user, x = ranked(6)
    other = user.clone()
    other[1:] += 1
    torch.testing.assert_close(fast(other, x), ranker(user, x).detach(), rtol=1e-4, atol=1e-5)


def test_an_example_may_hold_the_request_once(ranker: nn.Module) -> None:
    user, x = ranked(8)
    fast = compress(
        ranker,
        (user[:1], x),
        request_features=["user"],
        batch_sizes=(1,),
        seconds=2,
        backends=Eager(),
        progress=False,
    )
    torch.testing.assert_close(fast(user, x), ranker(user, x).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_left_of_a_declared_request_is_in_the_report(served: CompressedModel) -> None:
    work = served.report.work
    assert work is not None and work.candidate_after < 0.01 * work.candidate_before
    assert any("'user', 'x' columns 1" in note for note in served.report.notes)


def test_a_known_catalogue(ranker: nn.Module, served: CompressedModel) -> None:
    user, x = ranked(40)
    scorer = served.precompute({"x": x})
    expected = ranker(user, x).detach()
    request = {"user": user[:1], "x": x[:1]}
    torch.testing.assert_close(scorer(request, [3, 1, 3]), expected[[3, 1, 3]], rtol=1e-4, atol=1e-5)
    values, rows = scorer.topk(request, 5)
    assert rows.tolist() == expected.topk(5).indices.tolist()
    torch.testing.assert_close(values, expected.topk(5).values, rtol=1e-4, atol=1e-5)


def test_a_catalogue_needs_a_declared_request(fast: CompressedModel) -> None:
    with pytest.raises(InputError, match="request_features"):
        fast.precompute({"ids": torch.zeros(3, 20, dtype=torch.long)})


class Pooled(nn.Module):
    """One answer for a list of items and its mask: no dimension of the batch counts rows."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.user = nn.Embedding(50, 16), nn.Linear(4, 16)

    def forward(self, user: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        mean = (self.items(items) * mask[:, None]).sum(0) / mask.sum()
        return torch.sigmoid((mean * self.user(user)).sum())


@pytest.fixture(scope="module")
def pooled(served_anyway: None) -> CompressedModel:
    example = {"user": torch.rand(4), "items": torch.arange(20), "mask": torch.ones(20)}
    return compress(Pooled().eval(), example, seconds=2, backends=Eager(), progress=False)


def test_a_model_without_rows_is_measured_at_the_shape_of_its_example(pooled: CompressedModel) -> None:
    report = pooled.report
    assert not report.counted and [size.rows for size in report.sizes] == [1]
    assert "the example's" in str(report) and "row)" not in str(report) and "at 1 row" not in str(report)
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("count", [20, 30])
def test_a_bad_id_is_told_in_whatever_shape(pooled: CompressedModel, count: int) -> None:
    given = {"user": torch.rand(4), "items": torch.arange(count), "mask": torch.ones(count)}
    torch.testing.assert_close(pooled(**given), pooled.original.model(**given).detach())
    given["items"][7] = 50
    with pytest.raises(
        IdOutOfRangeError, match="'items', position 7: got id 50, expected 0 <= id < 50"
    ) as caught:
        pooled(**given)
    assert caught.value.feature == "items"
    with pytest.raises(InputError, match=r"'mask' is \(31,\), in the example it was \(20,\)"):
        pooled(**given | {"items": torch.arange(count), "mask": torch.ones(31)})


def test_without_guards_a_bad_id_is_told_as_one_too(served_anyway: None) -> None:
    given = {"user": torch.rand(4), "items": torch.arange(20), "mask": torch.ones(20)}
    fast = compress(
        Pooled().eval(), given, seconds=2, backends=Eager(), guards=False, progress=False, batch_sizes=(1,)
    )
    more = {"user": torch.rand(4), "items": torch.arange(30) + 40, "mask": torch.ones(30)}
    with pytest.raises(IdOutOfRangeError, match=r"an id is outside of the table.*'items' \(30,\)"):
        fast(**more)


@pytest.mark.parametrize("serves", ["a session", "the original"])
def test_columns_that_are_too_few_are_counted(fast: CompressedModel, serves: str) -> None:
    made = fast if serves == "a session" else CompressedModel(fast.original, {}, None, None, fast.once)
    ids, dense = batch(6)
    for given, got, expected in (((ids, dense[:, :2]), 2, 3), ((ids[:, :19], dense), 19, 20)):
        with pytest.raises(InputError, match=f"has {got} columns, expected {expected} as in the example"):
            made(*given)
    with pytest.raises(IndexError) if serves == "the original" else pytest.raises(IdOutOfRangeError):
        made(ids + 50, dense)
