"""A model that could not be captured behind the face of a session."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrec.backends import Eager, ModelSession, OnnxRuntime
from fastrec.errors import BackendError
from fastrec.ops.layers import Int8Linear
from fastrec.ops.packed_linears import pack
from fastrec.program import Program
from fastrec.techniques import QuantizeLinears
from tests.zoo import ZOO, make


def program_of(name: str) -> Program:
    entry = next(entry for entry in ZOO if entry.name == name)
    return Program.read(make(entry), entry.batch(32, torch.Generator().manual_seed(1)))


def test_its_layers_are_packed_on_a_draft_of_their_own() -> None:
    program = program_of("looping")
    made = program.with_model(QuantizeLinears(least=0).apply(program).model)
    session = Eager().compile(made)
    plain = [module for module in made.model.modules() if isinstance(module, Int8Linear)]
    assert len(plain) == 3 and all(layer.packed is None for layer in plain)
    layers = [module for module in session._program.model.modules() if isinstance(module, Int8Linear)]
    # Which layers the kernel stands for is the processor's to say.
    assert session.resident_bytes >= sum(layer.codes.nbytes for layer in layers if layer.packed is not None)
    for layer in layers:
        found = pack(layer.codes, layer.weight_scale, layer.x_scale, layer.x_zero)
        assert (layer.packed is None) == isinstance(found, str)
    flat = program.flat(program.batch)
    for got, right in zip(session(*flat), made.answers(flat), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_the_answer_is_the_models_own() -> None:
    program = program_of("looping")
    session = ModelSession(program)
    half = [tensor[:5] for tensor in program.flat(program.batch)]
    answer, right = session.as_called(half, program.layout), program.called(half)
    assert answer["mean"] == right["mean"] != program.called(program.flat(program.batch))["mean"]
    assert torch.equal(answer["state"][0], right["state"][0]) and not answer["logits"].requires_grad


def test_a_model_without_such_layers_runs_as_it_is() -> None:
    model = nn.Linear(4, 2).eval()
    x = torch.randn(3, 4)
    session = Eager().compile(Program.read(model, x))
    assert torch.equal(session(x)[0], model(x)) and session.resident_bytes == 0
    with pytest.raises(BackendError, match="capture"):
        OnnxRuntime().compile(Program.read(model, x))
