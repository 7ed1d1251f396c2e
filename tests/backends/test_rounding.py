"""Numbers are rounded to bfloat16 before the conversion, which then has nothing to round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import OpenVino
from fastrec.backends.rounding import round_first
from fastrec.graph import is_call

from .graphs import captured

aten = torch.ops.aten


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(torch.float32) + 0.0


def numbers() -> Tensor:
    """Of all sizes, ties and what is just beside them, and what is no number."""
    rng = torch.Generator().manual_seed(0)
    some = torch.randn(4000, generator=rng) * torch.exp2(
        torch.randint(-100, 110, (4000,), generator=rng).float()
    )
    even = torch.arange(256, 512, dtype=torch.int32) << 15  # every other one half way between two
    ties = (even + (127 << 23)).view(torch.float32)
    beside = torch.cat([torch.nextafter(ties, torch.tensor(9e9)), torch.nextafter(ties, torch.tensor(-9e9))])
    last = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    return torch.cat([some, ties, -ties, beside, last])


def test_it_rounds_to_nearest_halves_to_even() -> None:
    x = numbers()
    program = captured(Rounded(), (x,))
    gm = program.model
    assert isinstance(gm, fx.GraphModule)
    code = gm.code
    made = round_first(gm)
    assert gm.code == code
    (node,) = [
        n
        for n in made.graph.nodes
        if is_call(n, aten.to.dtype, aten._to_copy.default) and n.meta["val"].dtype is torch.bfloat16
    ]
    held = made.graph.output_node()
    held.args = ((node.args[0],),)
    made.recompile()
    (high,) = made(x)
    torch.testing.assert_close(high, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_beyond_what_it_splits_nothing_overflows() -> None:
    x = torch.tensor([3e33, -1e36, torch.finfo(torch.float32).max / 2])
    made = round_first(captured(Rounded(), (numbers(),)).model)  # type: ignore[arg-type]  # a captured program
    torch.testing.assert_close(made(x)[0], x, rtol=2**-8, atol=0.0)


def test_a_graph_without_is_the_same() -> None:
    gm = captured(nn.Linear(3, 2), (torch.ones(4, 3),)).model
    assert round_first(gm) is gm  # type: ignore[arg-type]  # a captured program


def test_openvino_rounds_as_torch_does() -> None:
    backend = OpenVino()
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    x = numbers()
    (got,) = backend.compile(captured(Rounded(), (x,)))(x)
    torch.testing.assert_close(got, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
