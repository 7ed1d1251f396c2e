"""Numbers near nothing that a model adds or multiplies by are there in every session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.backends import Backend, Eager, OnnxRuntime, OpenVino
from fastrec.backends.onnx_numbers import with_kept_numbers

from .graphs import captured, graph_of

EPS = 1e-12
IDS = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6], [7, 8, 0]])
COLD = torch.tensor([[1, 2, 0], [0, 0, 0], [4, 5, 6], [7, 8, 0]])


class Mean(nn.Module):
    """A mean over what is there, which of nothing is nothing; `held` as a tensor."""

    def __init__(self, held: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 1)
        if held:
            self.register_buffer("eps", torch.tensor(EPS))
        else:
            self.eps = EPS

    def forward(self, ids: Tensor) -> Tensor:
        count = (ids != 0).float().sum(1, keepdim=True)
        return self.head(self.table(ids).sum(1) / (count + self.eps))


@pytest.mark.usefixtures("served_anyway")
@pytest.mark.parametrize("backend", [OnnxRuntime(), OnnxRuntime(lookups="session"), OpenVino()])
@pytest.mark.parametrize("held", [False, True])
def test_a_mean_over_nothing(backend: Backend, held: bool) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    model = Mean(held).eval()
    fast = compress(model, IDS, backends=[backend], batch_sizes=(4,), seconds=1, progress=False)
    torch.testing.assert_close(fast(COLD), model(COLD))
    assert fast.report.sizes[0].session != "original"


def test_the_same_in_an_exported_model(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Mean(False).eval()
    fast = compress(model, IDS, backends=[Eager()], batch_sizes=(4,), seconds=1, progress=False)
    path = tmp_path / "model.onnx"
    fast.export_onnx(path)
    session = onnxruntime.InferenceSession(str(path))
    (answer, *_) = session.run(None, {session.get_inputs()[0].name: COLD.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), model(COLD).detach())


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x + 1e-9, 1),
        (lambda x: 1e-9 + x, 1),
        (lambda x: x - 1e-9, 1),
        (lambda x: x * 1.000001, 1),
        (lambda x: x / 0.999999, 1),
        (lambda x: x.sum() + 1e-9, 1),
        (lambda x: (x + 1e-9) * (x.mean() - 1e-10), 2),
        (lambda x: x + 0.5, 0),
        (lambda x: x * 2.0 + 0.0, 0),
        (lambda x: x.long() + 1, 0),
    ],
)
def test_which_numbers_are_kept(function: Callable[[Tensor], Tensor], kept: int) -> None:
    x = torch.randn(5, 3)
    gm = graph_of(captured(Of(function), (x,)))
    made = with_kept_numbers(gm)
    assert sum("kept_number" in str(node.target) for node in made.graph.nodes) == kept
    assert (made is gm) == (not kept)
    (one,), (other,) = gm(x), made(x)
    assert one.shape == other.shape and torch.equal(one, other)


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
