"""Large tables are read where they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fastrec.backends import OnnxRuntime
from fastrec.backends.onnx_tables import LARGE, is_lent, tables_as_inputs
from fastrec.capture import capture
from fastrec.program import Program

ROWS = LARGE // 32


class Lookups(nn.Module):
    """A large table, a small one, and one that a product reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(ROWS, 8), nn.Embedding(3000, 8)
        self.tied = nn.Embedding(ROWS, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.large(ids) + self.small(ids % 3000)
        return (x + self.tied(ids)) @ self.tied.weight[:5].T + x @ self.tied.weight.sum(0)[:, None]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Program.read(Lookups().eval(), (torch.arange(7),)))


def test_only_what_rows_are_gathered_of_and_nothing_else_reads() -> None:
    assert is_lent([("Gather", 0), ("Gather", 0)], LARGE)
    assert not is_lent([("Gather", 0)], LARGE - 1)
    assert not is_lent([("Gather", 1)], LARGE)
    assert not is_lent([("Gather", 0), ("MatMul", 1)], LARGE)
    assert not is_lent([], LARGE)


def test_a_large_table_is_an_input_and_answers_are_the_same_bits(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntime(lookups="session")
    translated = backend.translate(program)
    proto, lent = tables_as_inputs(translated.proto, translated.constants)
    made = onnx.load_from_string(proto)
    assert [translated.constants[name].shape for name in lent] == [(ROWS, 8)]
    assert {value.name for value in made.graph.input} == {*translated.inputs, *lent}
    ids = torch.randint(ROWS, (300,))
    session = backend.open(translated, program)
    # What the session holds is the table itself.
    (table,) = session._tables.values()
    assert table.ctypes.data == translated.constants[lent[0]].data_ptr()
    with monkeypatch.context() as patch:
        patch.setattr("fastrec.backends.onnxruntime.tables_as_inputs", lambda proto, constants: (proto, ()))
        inside = backend.open(translated, program)
    np.testing.assert_array_equal(session(ids)[0].numpy(), inside(ids)[0].numpy())


def test_what_a_session_copies_is_counted(program: Program) -> None:
    translated = OnnxRuntime(lookups="session").translate(program)
    large = ROWS * 8 * 4
    assert large <= translated.copied_bytes < 2 * large
