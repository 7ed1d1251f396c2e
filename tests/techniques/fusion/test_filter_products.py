"""Filters in the frequency domain, read at all positions."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.techniques import Fuse
from fastrec.techniques.fusion.filter_products import multiply_filters

from .rewrites import asked_program, count, rewritten
from .test_filters import FFT, NORMS, Spectral


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 33), st.data())
def test_any_length_and_norm(steps: int, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = Spectral(steps, norms=(data.draw(NORMS), data.draw(NORMS)), read=lambda y: y / steps)
    graph, changes = rewritten(multiply_filters, model, torch.randn(5, steps, 3))
    assert len(changes) == 1 and count(graph, *FFT) == 0


class _Two(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Spectral(steps, read=lambda y: y.tanh()) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_filters_of_one_length_share_their_matrices() -> None:
    graph, changes = rewritten(multiply_filters, _Two(8), torch.randn(5, 8, 3))
    first, second = changes
    assert first.added_bytes - second.added_bytes == 2 * 10 * 8 * 4
    assert sum(tensor.shape == (10, 8) for tensor in graph.buffers()) == 1


@pytest.mark.parametrize("steps", [257, 1])
def test_long_and_single_steps_stay(steps: int) -> None:
    assert rewritten(multiply_filters, Spectral(steps), torch.randn(3, steps, 3))[1] == []


def test_another_axis_stays() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6)

    assert rewritten(multiply_filters, Last(), torch.randn(5, 3, 6))[1] == []


def test_the_graph_with_its_transforms_is_measured_as_well() -> None:
    program, _ = asked_program(_Two(8), (), torch.randn(5, 8, 3))
    fuse = Fuse()
    applied = fuse.apply(program)
    other = fuse.alternatives(applied.changes)["without multiply filters"].apply(program).model
    assert count(applied.model, *FFT) == 0 and count(other, *FFT) == 4  # type: ignore[arg-type]
