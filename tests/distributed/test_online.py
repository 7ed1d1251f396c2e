"""The load that servers are measured by, and what is shown of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from benchmarks import online
from fastrec.measure import Ratio, machine
from fastrec.plain import dumps, to_plain


def test_the_load_waits_for_no_answer() -> None:
    """The first is answered only when the last was sent: who waits for answers would never get there."""
    last = asyncio.Event()
    sent: list[int] = []

    async def send(request: int) -> None:
        sent.append(request)
        if request == 9:
            last.set()
        await last.wait()

    found = asyncio.run(asyncio.wait_for(online.open_loop(send, range(10), rate=2000.0, seed=0), 60))
    assert sent == list(range(10)) and len(found) == 10
    # What came first waited longest, as each is counted from when it was to be sent.
    assert found[0] == max(found)


def test_the_model_as_it_is_answers_requests_together() -> None:
    model = online.CASES["two_tower"].build()
    requests = [online._requests("two_tower", 1, size, size)[0] for size in (3, 1, 4)]
    once = online._once("two_tower")
    for answer, request in zip(online.together(model, requests, once), requests, strict=True):
        user, item = request
        torch.testing.assert_close(answer, model(user.expand(len(item), -1), item))


def test_the_record_is_read_back_and_shown(tmp_path: Path) -> None:
    grid = online.Grid("din", 8, 100, 0.01, {"ragged": Ratio(2.0, 1.9, 2.1, 30)})
    load = online.Load("din", "compressed", 120.0, 900, 0.004, 0.02)
    found = online.Online(machine(), {"din": "ragged, onnxruntime"}, (grid,), (load,))
    path = tmp_path / "record.json"
    path.write_text(dumps({"schema": online.SCHEMA, **to_plain(found, "online")}))
    page = online.with_table(online.PAGE.read_text(), online.read(path))
    assert "| din | 8 | 100 | 10.0 ms | 2.00x (1.90 to 2.10x) |  |  |" in page
    assert "| din | compressed (ragged, onnxruntime) | 120 | 900 | 4.00 ms | 20.0 ms |" in page
