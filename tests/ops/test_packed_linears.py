"""The packed map gives the reference's numbers up to its last rounding, and a row the same bits in any batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec.ops import int8_linear, packed_linears
from fastrec.ops.packed_linears import PackedLinear, pack, packed_linear

from .test_linears import made

SCALE = 0.02


def packed(weight: Tensor, scale: Tensor, zero: int, step: float = SCALE) -> PackedLinear:
    found = pack(weight, scale, step, zero)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def draw(rows: int, inner: int, zero: int, seed: int = 0) -> Tensor:
    """Rows over the range and beyond, with values half way between two codes, and the largest there are."""
    rng = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, inner, generator=rng) * 300 - 20 - zero) * SCALE
    x[::3] = (torch.randint(-20, 280, (len(x[::3]), inner), generator=rng) - zero + 0.5) * SCALE
    x[:5] = torch.tensor([1e9, -1e9, 1e30, float("inf"), -float("inf")])[: len(x[:5]), None]
    return x


@pytest.mark.parametrize("zero", [0, 117, 255])
@pytest.mark.parametrize(
    ("inner", "outer"), [(1, 1), (7, 5), (64, 64), (432, 256), (519, 33), (1536, 3), (4096, 17)]
)
def test_the_numbers_are_the_references(inner: int, outer: int, zero: int) -> None:
    weight, scale, bias = made(inner, max(outer, 2))
    fast = packed(weight, scale, zero)
    for rows in (1, 2, 3, 8, 33, 500):
        x = draw(rows, inner, zero, rows)
        right = int8_linear(x, weight, scale, SCALE, zero)
        assert ((fast(x) - right).abs() <= 4 * 2**-24 * right.abs()).all()
        off = (fast(x, bias) - int8_linear(x, weight, scale, SCALE, zero, bias)).abs()
        assert (off <= 4 * 2**-24 * (right.abs() + bias.abs())).all()
        assert torch.equal(packed_linear(fast, x, bias[None]), fast(x, bias))


@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (3, 2, 6), (2, 0, 6), (2, 3, 4, 6)])
def test_any_number_of_dimensions_and_no_rows(shape: tuple[int, ...]) -> None:
    weight, scale, bias = made(6, 4)
    fast = packed(weight, scale, 100)
    x = torch.randn(shape)
    kept = x.clone()
    y = fast(x, bias)
    right = int8_linear(x, weight, scale, SCALE, 100, bias)
    assert y.shape == right.shape and y.dtype is torch.float32
    torch.testing.assert_close(y, right, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, kept)


def test_strided_inputs() -> None:
    weight, scale, bias = made(6, 4)
    fast = packed(weight, scale, 100)
    x = torch.randn(5, 3, 6)
    for strided in (x.transpose(0, 1), x[:, ::2], x[..., :1].expand(5, 3, 6), x[0].t().contiguous().t()):
        assert torch.equal(fast(strided, bias), fast(strided.contiguous(), bias))


@pytest.mark.parametrize("inner", [60, 384, 700])
def test_a_row_depends_on_no_other(inner: int) -> None:
    weight, scale, bias = made(inner, 40)
    fast = packed(weight, scale, 120)
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(300, inner, generator=rng)
    x[7], x[11] = 1e3, 1e30
    together = fast(x, bias)
    assert torch.isfinite(together).all()
    assert torch.equal(torch.cat([fast(row[None], bias) for row in x]), together)
    assert torch.equal(torch.stack([fast(row, bias) for row in x]), together)
    for _ in range(20):
        order = torch.randperm(len(x), generator=rng)
        cuts = torch.randint(1, 60, (20,), generator=rng).cumsum(0).clamp(max=len(x)).tolist()
        parts = [fast(x[part], bias) for part in order.tensor_split(cuts)]
        assert torch.equal(torch.cat(parts), together[order])


def test_nan_counts_as_zero_in_its_row() -> None:
    weight, scale, bias = made(8, 4)
    fast = packed(weight, scale, 128)
    x = torch.randn(3, 8)
    clean = x.clone()
    x[1, 2], clean[1, 2] = float("nan"), 0.0
    assert torch.equal(fast(x, bias), fast(clean, bias))


def test_copies_of_what_holds_it_share_it() -> None:
    weight, scale, _ = made(64, 32)
    fast = packed(weight, scale, 0)
    assert copy.deepcopy([fast])[0] is fast
    assert weight.nbytes <= fast.nbytes < 2 * weight.nbytes


def test_what_is_wrong_with_a_kernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, _ = made(64, 32)
    right = packed(weight, scale, 3)
    call = PackedLinear.__call__

    def saturating(self: PackedLinear, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Sums that pass 16 bits are cut off, as pairs of products are without VNNI."""
        limit = 32767 * 32 * SCALE * scale
        return call(self, x, bias).clamp(-limit, limit)

    def of_the_batch(self: PackedLinear, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return call(self, x, bias) * (1 + 2**-23 * (len(x) == 1))

    def broken(self: PackedLinear, x: Tensor, bias: Tensor | None = None) -> Tensor:
        raise RuntimeError("unsupported")

    for kernel, reason in ((saturating, "differs by"), (of_the_batch, "other bits at 1"), (broken, "unsupp")):
        monkeypatch.setattr(PackedLinear, "__call__", kernel)
        assert reason in str(pack(weight, scale, SCALE, 3))
    monkeypatch.setattr(PackedLinear, "__call__", call)
    assert right(torch.zeros(1, 64)).shape == (1, 32)


def test_a_torch_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ops:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"no {name}")

    monkeypatch.setattr(packed_linears.torch.ops, "onednn", Ops())
    weight, scale, _ = made(8, 4)
    assert "does not run here: AttributeError: no qlinear_prepack" in str(pack(weight, scale, SCALE, 3))
