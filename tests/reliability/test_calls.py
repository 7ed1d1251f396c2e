"""What calls leave behind: threads, memory, files, the model; and levels of ONNX Runtime's own rewriting."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, FastrecError, compress
from fastrec.backends import Eager, OnnxRuntime, onnx_backend, onnxruntime
from fastrec.capture import capture
from fastrec.measure import resident_bytes
from fastrec.program import Program
from tests.checks import assert_unchanged, call, flat, snapshot
from tests.zoo import ZOO, Entry, make

from .conftest import Ranker, batch_of

THREADS, CALLS, DISTINCT = 32, 60, 16


def test_a_model_in_training_is_left_as_it_was(ranker: Ranker) -> None:
    """T6: training mode, dropout of 0.9, normalisations, hooks and the random state, before and after."""
    model = Ranker()
    model.load_state_dict(ranker.state_dict())
    model.train()
    seen: list[int] = []
    model.tower.register_forward_hook(lambda *_: seen.append(1))
    before, state = snapshot(model), torch.get_rng_state()
    hooks = list(model.tower._forward_hooks.items())
    fast = compress(model, batch_of(4), batch_sizes=(4,), seconds=1, backends=Eager(), progress=False)
    answers = [fast(*batch_of(4, 2)) for _ in range(10)]
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.tower._forward_hooks.items()) == hooks
    assert all(torch.equal(answers[0], answer) for answer in answers)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x - 1


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x)


class Recursive(nn.Module):
    def forward(self, x: Tensor, depth: int = 0) -> Tensor:
        return x if float(x.abs().max()) < 1 or depth > 5 else self(x / 2, depth + 1)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return x + len(self.kept) * 0


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(x.to_sparse(), torch.ones(x.shape[1], 1))


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(x.reshape(len(x), -1, 2))


class Yielding(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return (part for part in (x, x))


ODD: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "data-dependent if": (Branching, True),
    "custom autograd function": (Custom, True),
    "recursion": (Recursive, True),
    "state in a list": (Stateful, True),
    "sparse": (Sparse, True),
    "complex": (Complex, True),
    "script": (lambda: torch.jit.script(nn.Linear(4, 2)), True),
    "half": (lambda: nn.Linear(4, 2).half(), False),
    "meta": (lambda: nn.Linear(4, 2, device="meta"), False),
    "generator": (Yielding, False),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_read_are_served_or_refused_by_name(
    what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """T7: the original's answers with a reason, or an error of the tree; nothing on the standard output."""
    build, answered = ODD[what]
    model, batch = build().eval(), torch.randn(6, 4)
    try:
        fast = compress(model, batch, batch_sizes=(6,), seconds=1, backends=Eager(), progress=False)
    except FastrecError as error:
        assert not answered and len(str(error)) > 20
    else:
        assert answered or what == "generator"
        if answered:
            torch.testing.assert_close(fast(batch), model(batch), rtol=1e-5, atol=1e-6)
        assert (
            fast.report.status == "improved" or fast.report.skipped or fast.report.notes or fast.report.trials
        )
    assert capfd.readouterr().out == ""


def test_many_threads_get_what_one_gets(fast: CompressedModel) -> None:
    """T15: 32 threads on one object, 16 inputs of different sizes, bit-equal to serial."""
    batches = [batch_of(1 + 7 * k, k) for k in range(DISTINCT)]
    serial = [fast(*batch) for batch in batches]

    def run(thread: int) -> int:
        picks = ((thread + k) % DISTINCT for k in range(CALLS))
        return sum(torch.equal(fast(*batches[k]), serial[k]) for k in picks)

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(run, range(THREADS), timeout=120)) == THREADS * CALLS


def test_calls_of_any_size_keep_no_memory_files_or_threads(fast: CompressedModel) -> None:
    """T17, short: 3,000 calls of log-uniform sizes after 1,500 to warm up; USS grows by 16 MiB at most."""
    rng = np.random.default_rng(0)
    pool = batch_of(2048, 1)

    def calls(count: int) -> None:
        for rows in np.exp(rng.uniform(0, np.log(2048), count)).astype(int):
            fast(*(tensor[:rows] for tensor in pool))

    process = psutil.Process()
    calls(1500)
    gc.collect()
    before = resident_bytes(), process.num_fds(), process.num_threads()
    calls(3000)
    gc.collect()
    grown, files, threads = (
        now - was
        for now, was in zip((resident_bytes(), process.num_fds(), process.num_threads()), before, strict=True)
    )
    assert grown <= 16 * 2**20 and files <= 0 and threads <= 0


@pytest.mark.parametrize("name", ["deepfm", "din", "sasrec", "mmoe"])
def test_levels_of_rewriting_of_onnx_runtime_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T24: none, basic, extended and all, pairwise within 1e-5 of the scale."""
    import onnxruntime as ort

    entry: Entry = next(entry for entry in ZOO if entry.name == name)
    model = make(entry)
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    program = Program.read(target, entry.batch(4, torch.Generator().manual_seed(4)))
    captured, usual, export = capture(program), onnxruntime.session_options, onnx_backend.export_onnx
    once: list[Any] = []

    def exported(*args: Any, **options: Any) -> Any:
        if not once:
            once.append(export(*args, **options))
        return once[0]

    monkeypatch.setattr(onnx_backend, "export_onnx", exported)
    batch = program.flat(entry.batch(33, torch.Generator().manual_seed(7)))
    found = []
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):

        def options(level: str = level) -> Any:
            made = usual()
            made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
            return made

        monkeypatch.setattr(onnxruntime, "session_options", options)
        found.append(OnnxRuntime().compile(captured)(*batch))
    for left, right in itertools.combinations(found, 2):
        for a, b in zip(left, right, strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))
    original = flat(call(getattr(model, entry.entry), entry.batch(33, torch.Generator().manual_seed(7))))
    for a, b in zip(found[0], original, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
