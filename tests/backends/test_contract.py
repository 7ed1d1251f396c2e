"""What every backend keeps: the answer at any number of rows, threads, determinism, nothing left behind."""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import BACKENDS, Backend, Eager, Inductor, OnnxRuntime, OpenVino, Session, installed
from fastrec.errors import BackendError, BackendUnavailable, InputError
from fastrec.program import Program

from .graphs import CASES, ROWS, SETTINGS, Case, captured, program_of

# Graphs a setting refuses, with what it must say.
REFUSED = {
    ("onnxruntime (lookups inside)", "bags"): "lookups='torch'",
    ("openvino (lookups inside)", "bags"): "lookups='torch'",
}

_sessions: dict[tuple[str, str], Session | BackendError] = {}


def session_of(backend: Backend, case: Case) -> Session:
    """The compiled session, compiled once for all tests; skips with the reason where it cannot run."""
    reason = backend.unavailable()
    if reason is not None:
        pytest.skip(reason)
    key = (backend.label, case.name)
    if key not in _sessions:
        try:
            _sessions[key] = backend.compile(program_of(case)[0])
        except BackendError as error:
            _sessions[key] = error
    found = _sessions[key]
    if isinstance(found, BackendError):
        raise found
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    _sessions.clear()
    torch.set_num_threads(threads)


def double(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The model's answer in float64."""
    wide = {
        name: value.double() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)
    with torch.no_grad():
        answer = torch.func.functional_call(model, wide, inputs)
    return answer if isinstance(answer, tuple) else (answer,)


def assert_close(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    assert len(got) == len(exact)
    for a, b in zip(got, exact, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=2e-5, atol=2e-6)


each_backend = pytest.mark.parametrize("backend", SETTINGS, ids=lambda backend: backend.label)
PAIRS = [(backend, case) for case in CASES for backend in SETTINGS]
each_pair = pytest.mark.parametrize(
    ("backend", "case"),
    [(b, c) for b, c in PAIRS if (b.label, c.name) not in REFUSED],
    ids=lambda one: one.label if isinstance(one, Backend) else one.name,
)


@pytest.mark.parametrize(
    ("backend", "case"),
    [(b, c) for b, c in PAIRS if (b.label, c.name) in REFUSED],
    ids=lambda one: one.label if isinstance(one, Backend) else one.name,
)
def test_what_a_setting_refuses_says_why(backend: Backend, case: Case) -> None:
    with pytest.raises(BackendError) as caught:
        session_of(backend, case)
    assert REFUSED[backend.label, case.name] in str(caught.value)


@each_backend
def test_compiling_changes_nothing_and_leaves_nothing(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    program, _ = program_of(CASES[0])
    threads, grad, state, filters = (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_rng_state(),
        list(warnings.filters),
    )
    code = program.model.code
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = backend.compile(program)
    session(*program.batch)
    assert list(tmp_path.glob("fastrec*")) == []
    assert (torch.get_num_threads(), torch.is_grad_enabled(), list(warnings.filters)) == (
        threads,
        grad,
        filters,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert program.model.code == code
    captured_text = capfd.readouterr()
    assert captured_text.out == "" and captured_text.err == ""
    # Tests below ask for the same.
    _sessions[backend.label, CASES[0].name] = session


@each_pair
def test_the_answer_at_any_number_of_rows(backend: Backend, case: Case) -> None:
    session = session_of(backend, case)
    _, model = program_of(case)
    for rows in (0, 1, 2, 3, 33, 1000):
        batch = case.batch(rows, torch.Generator().manual_seed(rows))
        assert_close(session(*batch), double(model, batch))


@each_pair
def test_the_same_twice(backend: Backend, case: Case) -> None:
    session = session_of(backend, case)
    batch = case.batch(17, torch.Generator().manual_seed(1))
    first = [tensor.clone() for tensor in session(*batch)]
    session(*case.batch(17, torch.Generator().manual_seed(2)))
    assert all(torch.equal(a, b) for a, b in zip(first, session(*batch), strict=True))


@each_backend
def test_answers_stay_when_the_session_is_called_again(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    answer = session(*CASES[1].batch(9, torch.Generator().manual_seed(1)))
    kept = [tensor.clone() for tensor in answer]
    session(*CASES[1].batch(9, torch.Generator().manual_seed(2)))
    assert all(torch.equal(a, b) for a, b in zip(answer, kept, strict=True))


@each_backend
def test_eight_threads(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    batches = [CASES[1].batch(rows, torch.Generator().manual_seed(rows)) for rows in range(1, 33)]
    expected = [[tensor.clone() for tensor in session(*batch)] for batch in batches]
    start = threading.Barrier(8)

    def serve(worker: int) -> list[list[Tensor]]:
        start.wait()
        return [list(session(*batches[(worker + i) % len(batches)])) for i in range(64)]

    with ThreadPoolExecutor(8) as pool:
        for worker, answers in enumerate(pool.map(serve, range(8))):
            for i, answer in enumerate(answers):
                right = expected[(worker + i) % len(batches)]
                assert_close(tuple(answer), tuple(right))


@each_backend
@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, torch.enable_grad], ids=lambda m: m.__name__
)
def test_in_any_mode_of_the_caller(backend: Backend, mode: type[torch.no_grad]) -> None:
    session = session_of(backend, CASES[1])
    batch = CASES[1].batch(4, torch.Generator().manual_seed(1))
    with mode():
        inside = [tensor.clone() for tensor in session(*batch)]
    outside = session(*batch)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    for tensor in outside:
        assert not tensor.requires_grad and not tensor.is_inference()
        tensor.add_(1)


@each_backend
def test_inputs_that_ask_for_gradients_or_are_strided(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    ids, x = CASES[1].batch(6, torch.Generator().manual_seed(1))
    expected = session(ids, x)
    assert_close(session(ids, x.clone().requires_grad_()), expected)
    assert not session(ids, x.clone().requires_grad_())[0].requires_grad
    assert_close(session(ids.t().contiguous().t(), x.t().contiguous().t()), expected)
    wide = torch.cat([x, x], 1)
    assert_close(session(ids, wide[:, :3]), expected)


@each_backend
def test_inputs_are_not_written_to(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    batch = CASES[1].batch(5, torch.Generator().manual_seed(1))
    before = [tensor.clone() for tensor in batch]
    session(*batch)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


@each_backend
def test_a_model_that_was_not_captured_runs_where_modules_do_and_is_refused_elsewhere(
    backend: Backend,
) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    program, model = program_of(CASES[0])
    if backend.modules:
        (got,) = backend.compile(program.with_model(model))(*program.batch)
        assert torch.equal(got, model(*program.batch))
        return
    with pytest.raises(BackendError, match="capture"):
        backend.compile(program.with_model(model))


@each_backend
def test_a_graph_that_cannot_run_is_refused_in_one_line(backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    program, _ = program_of(CASES[0])
    gm = program.model
    assert isinstance(gm, fx.GraphModule)
    broken = fx.GraphModule(gm, fx.Graph())
    source = broken.graph.placeholder("x")
    source.meta["val"] = next(iter(gm.graph.nodes)).meta["val"]
    broken.graph.output((broken.graph.call_function(_unknown, (source,)),))
    broken.recompile()
    with pytest.raises(BackendError) as caught:
        backend.compile(program.with_model(broken))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert caught.value.backend == backend.name


def _unknown(x: Tensor) -> Tensor:
    raise RuntimeError("\x1b[31mno such operator\x1b[0m\nand a long dump\nof a graph")


@each_backend
def test_settings_are_inert_and_equal_by_value(backend: Backend) -> None:
    assert backend == dataclasses.replace(backend) and hash(backend) == hash(dataclasses.replace(backend))
    assert BACKENDS[backend.name] is type(backend)
    with pytest.raises(dataclasses.FrozenInstanceError):
        backend.extra = 1  # type: ignore[attr-defined]


def test_installed_are_available_and_differ() -> None:
    found = installed()
    assert found and all(backend.unavailable() is None for backend in found)
    assert len({backend.label for backend in found}) == len(found)


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda backend: backend.label)
def test_a_missing_package_is_said_with_the_cure(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backend.name, None)
    assert "pip install" in str(backend.unavailable())
    assert backend.label not in {other.label for other in installed()}
    with pytest.raises(BackendUnavailable, match="pip install"):
        backend.compile(program_of(CASES[0])[0])


def test_a_missing_compiler_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    assert "g++" in str(Inductor().unavailable())
    with pytest.raises(BackendUnavailable, match=r"g\+\+"):
        Inductor().compile(program_of(CASES[0])[0])


@pytest.mark.parametrize("backend", [Inductor()], ids=lambda backend: backend.label)
def test_generated_code_is_not_given_what_it_would_misread(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    ids, x = CASES[1].batch(6, torch.Generator().manual_seed(1))
    for batch in (
        (ids.int(), x),
        (ids, x.double()),
        (ids[:, :3], x),
        (ids, x[:3]),
        (ids,),
        (ids, x, x),
        (ids[0], x),
    ):
        with pytest.raises(InputError):
            session(*batch)
    assert_close(session(ids, x), session(ids.clone(), x.clone()))


@each_backend
def test_an_id_no_table_has_never_gives_another_shape(backend: Backend) -> None:
    session = session_of(backend, CASES[1])
    ids, x = CASES[1].batch(6, torch.Generator().manual_seed(1))
    ids[3, 2] = 10 * ROWS
    try:
        (answer,) = session(ids, x)
    except Exception as error:
        assert re.search(r"(?i)index|bounds|range", str(error))
    else:
        # Refusing is the guards' work; a session may answer anything, in the right shape.
        assert answer.shape == (6,)


class Tables(nn.Module):
    """One large table, one small tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(100_000, 16), nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


@pytest.mark.parametrize(
    "backend",
    [Eager(), OnnxRuntime(), OnnxRuntime(lookups="session"), OpenVino(), Inductor()],
    ids=lambda b: b.label,
)
def test_tables_are_not_copied(backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    program: Program = captured(Tables(), (torch.arange(4),))
    assert backend.compile(program).resident_bytes < 100_000
