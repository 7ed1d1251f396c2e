"""Long histories as segments and their newest events."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.errors import InputError, TechniqueError
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, TruncateHistory
from tests.techniques.fusion.rewrites import asked_program

from .models import Attention, Weights, padded

STEPS, SHORT = 40, TruncateHistory(recent=12, segments=7)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def shortened(
    model: nn.Module, *batch: Tensor, technique: TruncateHistory = SHORT
) -> tuple[Program, Applied]:
    program = capture(Program.read(model, batch))
    return program, technique.apply(program)


def answers(model: nn.Module, *batch: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(*batch)
    first: Tensor = found[0] if isinstance(found, (tuple, list)) else found
    return first


def even(rows: int) -> Tensor:
    """Histories whose events are alike within each of 7 segments of the first 28, of which some are padding in part."""
    history = torch.randint(1, 60, (rows, 7), generator=rng(1)).repeat_interleave(4, 1)
    newest = torch.randint(1, 60, (rows, 12), generator=rng(2))
    padding = torch.tensor([0, 3, 4, 10, 28, 30, 39, 40])[torch.arange(rows) % 8].unsqueeze(1)
    return torch.cat([history, newest], 1) * (torch.arange(STEPS) >= padding)


def test_events_alike_within_segments_give_the_answer() -> None:
    ways = get_args(Weights)
    model = seeded(lambda: Attention(*ways, steps=STEPS))
    # Places would make events differ.
    model.places.weight.data.zero_()  # type: ignore[union-attr, operator]
    batch = (torch.randint(1, 60, (32,), generator=rng(3)), even(32))
    program, applied = shortened(model, *batch)
    assert len(applied.changes) == len(ways) and not applied.skipped
    with torch.no_grad():
        right = copy.deepcopy(model).double()(*batch)
    for rows in (32, 1, 0):
        with torch.no_grad():
            got = applied.model(*[tensor[:rows] for tensor in batch])
        for way, near, exact in zip(ways, got, right, strict=True):
            # Where no mask leaves padding out, it is an event like others, and some segments have both.
            some = slice(0, rows, 8 if way == "none" else 1)
            torch.testing.assert_close(
                near.double()[some], exact[some], atol=1e-4, rtol=1e-4, equal_nan=True, msg=way
            )
    assert SHORT.apply(program.with_model(applied.model)).changes == ()


def test_more_is_nearer_and_the_newest_count_most() -> None:
    model = seeded(lambda: Attention("softmax"))
    batch = (torch.randint(1, 60, (200,), generator=rng()), padded(200, STEPS, rng(1)))
    right, off = answers(model, *batch), []
    program, applied = shortened(model, *batch, technique=TruncateHistory(16, 16))
    shorter = [one.apply(program) for one in (TruncateHistory(4, 2), TruncateHistory(8, 8))]
    for one in (*shorter, applied):
        off.append(float((answers(one.model, *batch) - right).norm() / right.std()))
    assert off[0] > off[1] > off[2]
    newest = batch[1].clone()
    newest[:, -1] = 1 + newest[:, -1] % 59
    moved = answers(model, batch[0], newest) - right
    near = answers(shorter[1].model, batch[0], newest) - answers(shorter[1].model, *batch)
    assert float(F.cosine_similarity(near, moved, 0)) > 0.8


def test_a_request_has_its_segments_once() -> None:
    model = seeded(lambda: Attention("softmax", steps=200, width=16))
    history = padded(1, 200, rng(), fewest=150).expand(33, -1).contiguous()
    program, once = asked_program(model, ("history",), torch.randint(1, 60, (33,), generator=rng()), history)
    assert len(TruncateHistory().apply(program).changes) == 1
    once_for_all = Fuse(rules=("remove_no_ops", "compute_once", "drop_expands"))
    exact = program.with_model(once_for_all.apply(program).model)
    short = program.with_model(TruncateHistory().apply(program).model)
    short = short.with_model(once_for_all.apply(short).model)
    # 48 of 200 positions a candidate, and what the segments take is none of it.
    assert cost(short, 500).multiply_adds < 0.27 * cost(exact, 500).multiply_adds
    item = torch.randint(1, 60, (9,), generator=rng(5))
    alone = once.one([item, history[:9]])
    near, right = answers(short.model, *alone), answers(model, item, history[:9])
    assert float((near - right).norm() / right.norm()) < 0.1


def test_a_plain_product_pays_for_a_request_alone() -> None:
    model = seeded(lambda: Attention("softmax", steps=200, width=16, net=False))
    batch = (torch.randint(1, 60, (33,), generator=rng()), padded(33, 200, rng(), fewest=9))
    assert "DctTransform" in shortened(model, *batch, technique=TruncateHistory())[1].skipped[0].reason
    asked, _ = asked_program(model, ("history",), batch[0], batch[1][:1].expand(33, -1).contiguous())
    assert len(TruncateHistory().apply(asked).changes) == 1


class Other(nn.Module):
    """A history that goes elsewhere."""

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.items, self.use = nn.Embedding(60, 8, padding_idx=0), use
        self.unit = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("offsets", torch.arange(STEPS) % 7)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        query = self.items(item).unsqueeze(1)
        return self.use(self, query, history)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        score: Tensor = self.unit(torch.cat([query.expand(-1, STEPS, -1), keys], -1))
        return score


def _attend(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    return F.scaled_dot_product_attention(query, keys, keys)


def _fields(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history % 50 + model.offsets)
    return (model.scores(query, keys) * keys).sum(1)


def _biased(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    return ((model.scores(query, keys).softmax(1) + 0.1) * keys).sum(1)


def _two_masks(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    score = model.scores(query, keys).squeeze(-1).masked_fill(history == 0, 0.0)
    return (score.masked_fill(history > 50, 0.0).unsqueeze(-1) * keys).sum(1)


def _added(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    score = model.scores(query, keys).squeeze(-1) + 3.0 * (history == 0).float()
    return (score.softmax(1).unsqueeze(-1) * keys).sum(1)


def _differences(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    return (model.scores(query, keys.cumsum(1)) * keys).sum(1)


def _met(model: Any, query: Tensor, history: Tensor) -> Tensor:
    keys = model.items(history)
    seen = torch.ones(STEPS, STEPS, dtype=torch.bool).tril()
    weights = (keys @ keys.transpose(1, 2)).masked_fill(~seen, -1e9).softmax(-1)
    return (weights @ keys)[:, -1] * query.squeeze(1)


def _filtered(model: Any, query: Tensor, history: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(model.items(history), dim=1)
    return torch.fft.irfft(spectrum * spectrum, n=STEPS, dim=1)[:, -1] * query.squeeze(1)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda model, query, history: model.items(history).sum(1) * query.squeeze(1), "DctTransform"),
        (lambda model, query, history: model.items(history)[:, -1] * query.squeeze(1), "nothing sums"),
        (_attend, "one call of attention"),
        (_met, "each event meets all others"),
        (_filtered, "filters"),
        (_fields, "offset of its own"),
        (_biased, "no multiple"),
        (_two_masks, "different events"),
        (_added, "not known"),
        (_differences, "cumsum"),
    ],
)
def test_what_is_left_is_said(use: Callable[[Any, Tensor, Tensor], Tensor], said: str) -> None:
    batch = (torch.randint(1, 60, (9,), generator=rng()), padded(9, STEPS, rng()))
    program, applied = shortened(seeded(lambda: Other(use)), *batch)
    assert applied.changes == () and applied.model is program.model
    assert said in " ".join(skip.reason for skip in applied.skipped)


def test_histories_padded_at_their_end_stay() -> None:
    model = seeded(lambda: Attention("softmax"))
    batch = (torch.randint(1, 60, (9,), generator=rng()), padded(9, STEPS, rng()))
    program, applied = shortened(model, *batch)
    assert applied.changes
    behind = replace(program, calibration=((batch[0], batch[1].flip(1)),))
    assert "pad them in front" in SHORT.apply(behind).skipped[0].reason


def test_milder_settings_keep_more() -> None:
    program = Program.read(nn.Linear(2, 1), torch.randn(3, 2))
    assert [str(one) for one in SHORT.milder(program, ())] == [
        "TruncateHistory(recent=24, segments=14)",
        "TruncateHistory(recent=48, segments=28)",
    ]
    with pytest.raises(TechniqueError, match="capture the program first"):
        SHORT.apply(program)


@pytest.mark.parametrize("settings", [{"recent": 0}, {"segments": 0}, {"recent": 2.5}, {"segments": True}])
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="whole number from 1"):
        TruncateHistory(**settings)


def test_short_histories_are_nobodys_business() -> None:
    model = seeded(lambda: Attention("softmax"))
    batch = (torch.randint(1, 60, (9,), generator=rng()), padded(9, STEPS, rng()))
    program, applied = shortened(model, *batch, technique=TruncateHistory())
    assert applied == Applied(program.model) and isinstance(program.model, fx.GraphModule)
