"""What `compress` says of where the time goes: within its share of the time, of what serves, or nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import breakdowns, compress
from fastrec.backends import Eager
from fastrec.breakdowns import set_aside, where_time_goes
from fastrec.capture import capture
from fastrec.journal import Journal
from fastrec.measure import Fidelity
from fastrec.program import Program
from fastrec.request import Once
from fastrec.rewriting import rewritten
from fastrec.sessions import Made
from fastrec.techniques import Fuse
from tests.reports import size


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(50, 8), nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(torch.cat([self.table(user), self.table(item)], 1))).squeeze(1)


def journal(allowed: float = 60.0, left: float = 60.0) -> Journal:
    now = time.perf_counter()
    return Journal(now + left - allowed, now + left)


def looked(work: Journal, session: str = "eager", p50: float = 1e-4) -> tuple[Any, ...]:
    torch.manual_seed(0)
    batch = (torch.randint(50, (6,)), torch.randint(50, (6,)))
    original = Program.read(Ranker().eval(), batch)
    plain = capture(original)
    fast = rewritten(plain, (Fuse(),))
    same = Fidelity(6, 0.0, 0.0, 0, True, True, True, 1.0, 1.0)
    sessions = {"eager": Made(Eager().compile(fast), fast, same)}
    sessions["openvino"] = sessions["eager"]

    def fresh(rows: int, index: int) -> list[Tensor]:
        rng = torch.Generator().manual_seed(index)
        return [torch.randint(50, (rows,), generator=rng) for _ in batch]

    results = [size(1, 1e-4, 1e-5), size(9, p50, p50 / 2, session), size(100, 1e-3, 1e-4)]
    return where_time_goes(work, original, plain, Once(plain.layout.features), sessions, results, fresh)


def test_before_and_after_at_the_middle_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdowns, "_MOST", 0.1)
    before, after = looked(journal())
    assert (before.label, before.rows, after.label, after.rows) == ("original", 9, "eager", 9)
    assert {part.kind for part in after.parts} == {"lookup", "interaction", "dense", "framework"}
    assert [one.label for one in looked(journal(), "openvino")][1] == "openvino: its graph in torch"
    assert [one.label for one in looked(journal(), "original")] == ["original"]


@pytest.mark.parametrize(
    ("allowed", "left", "p50"),
    [(4, 60, 1e-4), (60, 0.1, 1e-4), (60, 60, 0.2)],
    ids=["little time", "late", "slow calls"],
)
def test_nothing_where_the_time_is_short(allowed: float, left: float, p50: float) -> None:
    work = journal(allowed, left)
    assert looked(work, p50=p50) == () and work.notes == []


def test_what_goes_wrong_is_noted_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(breakdowns, "breakdown", broken)
    work = journal()
    assert looked(work) == ()
    assert work.notes == ["where the time goes was not measured: RuntimeError: no kernel"]


def test_its_share_of_the_time_is_small() -> None:
    assert set_aside(journal(4)) == 0 and set_aside(journal(20)) == pytest.approx(0.8)
    assert set_aside(journal(3600)) <= 2


def test_compress_reports_it() -> None:
    torch.manual_seed(0)
    batch = (torch.randint(50, (6,)), torch.randint(50, (6,)))
    fast = compress(Ranker(), batch, seconds=10, batch_sizes=(4,), backends=Eager(), progress=False)
    assert fast.report.breakdown[0].label == "original" and fast.report.breakdown[0].rows == 4
