"""Filters in the frequency domain, read at one position."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.techniques.fusion.filters import filter_one_position

from .rewrites import count, rewritten

FFT = (torch.ops.aten.fft_rfft.default, torch.ops.aten.fft_irfft.default)


class Spectral(nn.Module):
    """x (B, T, d) filtered along its steps, as FMLP-Rec does."""

    weight: Tensor

    def __init__(
        self,
        steps: int,
        width: int = 3,
        norms: tuple[str | None, str | None] = ("ortho", "ortho"),
        read: Callable[[Tensor], Tensor] = lambda y: y[:, -1],
    ) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(1, steps // 2 + 1, width, dtype=torch.complex64))
        self.norms, self.read = norms, read

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm=self.norms[0]) * self.weight
        return self.read(torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm=self.norms[1]))


NORMS = st.sampled_from([None, "ortho", "forward", "backward"])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 13), st.data())
def test_any_length_norm_and_position(steps: int, data: st.DataObject) -> None:
    at, norms = data.draw(st.integers(-steps, steps - 1)), (data.draw(NORMS), data.draw(NORMS))
    torch.manual_seed(0)
    model = Spectral(steps, norms=norms, read=lambda y: y[:, at] / steps)
    graph, changes = rewritten(filter_one_position, model, torch.randn(5, steps, 3))
    assert len(changes) == 1 and count(graph, *FFT) == 0


def test_slices_and_several_positions() -> None:
    model = Spectral(6, read=lambda y: y[:, 2:3].squeeze(1) + y[:, 4].tanh())
    graph, changes = rewritten(filter_one_position, model, torch.randn(5, 6, 3))
    assert len(changes) == 2 and count(graph, *FFT) == 0


@pytest.mark.parametrize(
    "read", [lambda y: y, lambda y: y[:, -1] + y.mean(1), lambda y: y[:, :, 0], lambda y: y[:, 1:]]
)
def test_other_readers(read: Callable[[Tensor], Tensor]) -> None:
    graph, changes = rewritten(filter_one_position, Spectral(6, read=read), torch.randn(5, 6, 3))
    assert changes == [] and count(graph, *FFT) == 2


def test_a_filter_of_the_input_stays() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x, dim=1)
            return torch.fft.irfft(spectrum * spectrum.conj(), n=x.shape[1], dim=1)[:, 0]

    assert rewritten(filter_one_position, Own(), torch.randn(5, 6, 3))[1] == []


def test_a_shorter_inverse_stays() -> None:
    class Shorter(Spectral):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x, dim=1) * self.weight
            return torch.fft.irfft(spectrum, n=4, dim=1)[:, 0]

    graph, changes = rewritten(filter_one_position, Shorter(6), torch.randn(5, 6, 3))
    assert changes == [] and count(graph, *FFT) == 2
