"""The property: what a request's features are declared for changes the work, never the answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, seed, settings

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.program import Program
from fastrec.request import Once, ask
from fastrec.techniques.fusion import Fuse
from tests.checks import assert_as_good, call, double, flat, rolled_back
from tests.zoo import make

from .describe import BLOCKS, Block, Description, descriptions
from .model import entry_of, request_of

__all__ = ["assert_the_answer_is_kept", "generated"]

EXAMPLES = int(os.environ.get("FASTREC_EXAMPLES", "350"))
SEED = int(os.environ.get("FASTREC_SEED", "0"))


def assert_the_answer_is_kept(description: Description) -> None:
    """The graph of one request, every rule applied, answers as the model does on whole rows; no rule was rolled back."""
    entry = entry_of(description)
    model = make(entry)
    program = Program.read(model, entry.batch(5, torch.Generator().manual_seed(5)))
    captured = capture(program)
    features = read_request(captured.layout.features, request_of(description))
    asked = ask(replace(captured, layout=replace(captured.layout, features=features)))
    applied = Fuse().apply(asked)
    assert not rolled_back(applied), applied.skipped
    once = Once(features)
    for rows in (0, 1, 33):
        if rows in asked.layout.exempt:
            continue
        batch = entry.batch(rows, torch.Generator().manual_seed(rows))
        with torch.no_grad():
            got = applied.model(*once.one(program.flat(batch)))
        assert_as_good(list(got), flat(call(model, batch)), double(model, "forward", batch))


def generated(number: int, *first: type[Block]) -> Callable[[], None]:
    """A test over models whose first block is one of `first`: its share of FASTREC_EXAMPLES (350), always the same models.

    Another FASTREC_SEED draws other models. `number` tells tests apart.
    """
    share = -(-EXAMPLES * len(first) // len(BLOCKS))

    @seed(SEED * 100 + number)
    @settings(
        max_examples=share,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(descriptions(first))
    def test(description: Description) -> None:
        assert_the_answer_is_kept(description)

    return test
