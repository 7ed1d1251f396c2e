"""Every model of the zoo is captured, or refused with a reason, and left as it was."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import CaptureError
from fastrec.program import Program

from .checks import assert_as_good, assert_unchanged, call, double, flat, snapshot
from .zoo import ZOO, Entry, make


def program_of(entry: Entry, rows: int = 4) -> Program:
    batch = entry.batch(rows, torch.Generator().manual_seed(rows))
    return Program.read(getattr(make(entry), entry.entry) if entry.entry != "forward" else make(entry), batch)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_the_graph_answers_as_the_model_at_any_size(entry: Entry, rows: int) -> None:
    program = program_of(entry, rows)
    before = snapshot(program.model)
    assert not hasattr(
        program, "graph"
    )  # and asking is no error, as tools that look at an object's attributes do
    if not entry.capturable:
        with pytest.raises(CaptureError) as caught:
            capture(program)
        assert str(caught.value)
        assert_unchanged(program.model, before)
        return
    captured = capture(program)
    assert isinstance(captured.model, fx.GraphModule)
    assert_unchanged(program.model, before)
    for size in entry.sizes:
        if size in captured.layout.exempt or (rows == 1 and entry.name == "sasrec" and size != 1):
            continue
        batch = entry.batch(size, torch.Generator().manual_seed(100 + size))
        original = flat(call(getattr(program.model, entry.entry), batch))
        args, kwargs = program.call_of(batch)
        got = captured.model(*program.layout.flatten(args, kwargs))
        assert_as_good(list(got), original, double(program.model, entry.entry, batch))


class Asserting(nn.Module):
    """Checks of its own: of a size, which needs none, and of values."""

    def forward(self, x: Tensor) -> Tensor:
        torch._check(len(x) < 10**6)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch._assert_async(
            (x >= 0).all()
        )  # as an assert is read, in files that no test runner has rewritten
        return x.to(torch.float64)


def test_checks_of_values_that_a_graph_does_not_make_are_named() -> None:
    program = capture(Program.read(Asserting(), torch.rand(5, 2)))
    line = inspect.getsourcelines(Asserting.forward)[1] + 2
    assert program.unchecked == (f"tests/test_capture.py:{line}",)
    assert "assert" not in str(program.graph.graph)
    assert not capture(program_of(next(entry for entry in ZOO if entry.capturable))).unchecked
