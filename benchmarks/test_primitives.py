"""What the rewrites are made of, timed alone: `pytest benchmarks/test_primitives.py`.

Ids are fresh on every call, drawn outside the timing. Compare within one run only: nothing here gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrec.inputs import read_layout

from .models import CASES, DENSE, FIELDS, ROWS, WIDTH

pytest.importorskip("pytest_benchmark")

SIZES = (1, 100, 1000)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tables() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(FIELDS)]


@pytest.fixture(scope="module")
def stacked(tables: list[Tensor]) -> Tensor:
    return torch.cat(tables)


def _time(
    benchmark: Any, call: Callable[..., Tensor], draw: Callable[[torch.Generator], tuple[Tensor, ...]]
) -> Any:
    """Time `call` on fresh inputs and return its result on the last of them with those inputs."""
    generator = torch.Generator().manual_seed(1)
    last: list[tuple[Tensor, ...]] = []

    def setup() -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        last[:] = [draw(generator)]
        return last[0], {}

    with torch.inference_mode():
        return benchmark.pedantic(call, setup=setup, rounds=200, warmup_rounds=5), last[0]


def _ids(rows: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda generator: (torch.randint(ROWS, (rows, FIELDS), generator=generator),)


@pytest.mark.parametrize("rows", SIZES)
def test_lookups_one_by_one(benchmark: Any, tables: list[Tensor], rows: int) -> None:
    def call(ids: Tensor) -> Tensor:
        return torch.cat([F.embedding(ids[:, i], table) for i, table in enumerate(tables)], dim=1)

    out, _ = _time(benchmark, call, _ids(rows))
    assert out.shape == (rows, FIELDS * WIDTH)


@pytest.mark.parametrize("rows", SIZES)
def test_lookups_stacked(benchmark: Any, tables: list[Tensor], stacked: Tensor, rows: int) -> None:
    offsets = torch.arange(FIELDS) * ROWS

    def call(ids: Tensor) -> Tensor:
        return F.embedding(ids + offsets, stacked).flatten(1)

    out, (ids,) = _time(benchmark, call, _ids(rows))
    assert torch.equal(out, torch.cat([table[ids[:, i]] for i, table in enumerate(tables)], dim=1))


@pytest.mark.parametrize("rows", SIZES)
def test_batch_norm_apart(benchmark: Any, rows: int) -> None:
    weight, bias, mean, variance = (
        torch.randn(400, 400),
        torch.randn(400),
        torch.randn(400),
        torch.rand(400) + 0.5,
    )

    def call(x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(F.linear(x, weight, bias), mean, variance))

    out, _ = _time(benchmark, call, lambda generator: (torch.randn(rows, 400, generator=generator),))
    assert out.shape == (rows, 400)


@pytest.mark.parametrize("rows", SIZES)
def test_batch_norm_folded(benchmark: Any, rows: int) -> None:
    weight, bias, mean, variance = (
        torch.randn(400, 400),
        torch.randn(400),
        torch.randn(400),
        torch.rand(400) + 0.5,
    )
    scale = (variance + 1e-5).rsqrt()
    folded, shift = weight * scale[:, None], (bias - mean) * scale

    def call(x: Tensor) -> Tensor:
        return F.relu(F.linear(x, folded, shift))

    out, (x,) = _time(benchmark, call, lambda generator: (torch.randn(rows, 400, generator=generator),))
    torch.testing.assert_close(
        out, F.relu(F.batch_norm(F.linear(x, weight, bias), mean, variance)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("case", ["deepfm", "din"])
def test_flatten_batch(benchmark: Any, case: str) -> None:
    """The reading of a batch that every wrapped call pays for."""
    batch = CASES[case].make_batch(100, torch.Generator().manual_seed(0))
    model = CASES[case].make()
    layout, flat = read_layout(model.forward, batch)
    assert len(flat) == len(batch)
    found = benchmark(layout.flatten, batch, {})
    assert all(a is b for a, b in zip(found, flat, strict=True))


def test_dense_width() -> None:
    """The standard cases are the ones the results speak of."""
    ids, dense = CASES["deepfm"].make_batch(3, torch.Generator().manual_seed(0))
    assert ids.shape == (3, FIELDS) and dense.shape == (3, DENSE)
