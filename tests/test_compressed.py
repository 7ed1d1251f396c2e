"""The compressed model: routes, fallbacks, refusals."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, IdOutOfRangeError, InputError, compress
from fastrec.backends import Eager


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
def fast(model: nn.Module) -> CompressedModel:
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
        (lambda i, d: (i, d[:, :2]), r"'dense' is \(4, 2\), in the example it was \(4, 3\)"),
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
