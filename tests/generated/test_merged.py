"""Generated models, asked for several requests at once."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, seed, settings

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.program import Program
from fastrec.request import Once
from fastrec.serving.joined import Joiner
from fastrec.serving.ragged import ask_several, inputs_of, pick_late
from fastrec.techniques.fusion import Fuse
from tests.checks import assert_as_good, call, double, flat, rolled_back
from tests.zoo import make

from .describe import BLOCKS, Description, descriptions
from .model import entry_of, request_of

EXAMPLES = int(os.environ.get("FASTREC_EXAMPLES", "350")) // 10
SEED = int(os.environ.get("FASTREC_SEED", "0"))


@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(descriptions(BLOCKS))
def test_each_request_is_answered_as_by_itself(description: Description) -> None:
    """The ragged graph, every rule applied, answers as the model does each request; no rule was rolled back."""
    entry = entry_of(description)
    model = make(entry)
    program = Program.read(model, entry.batch(5, torch.Generator().manual_seed(5)))
    features = read_request(program.layout.features, request_of(description))
    program = replace(program, layout=replace(program.layout, features=features))
    once = Once(features)
    joiner = Joiner(program.layout, once)
    if joiner.unable or not once:
        return
    first = pick_late(ask_several(capture(program), joiner))
    applied = Fuse().apply(first)
    assert not rolled_back(applied), applied.skipped
    several = pick_late(first.with_model(applied.model))
    batches = [entry.batch(rows, torch.Generator().manual_seed(rows)) for rows in (4, 1, 7, 2)]
    joined = joiner.join([once.one(program.flat(batch)) for batch in batches])
    answers = joiner.split(several.answers(inputs_of(joined, joiner)), joined.sizes)
    for batch, got in zip(batches, answers, strict=True):
        assert_as_good(got, flat(call(model, batch)), double(model, "forward", batch))
