"""Workers of one host hold the tables of an artifact once, all together."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, Fuse, load
from fastrec.backends import Backend, Eager, OnnxRuntime, OpenVino
from fastrec.measure import resident_bytes
from fastrec.techniques import QuantizeTables, Technique

ROWS, WIDTH, WORKERS = 1_000_000, 16, 4
FLOAT32 = ROWS * WIDTH * 4
CASES: dict[str, tuple[Backend, tuple[Technique, ...], float]] = {
    "eager": (Eager(), (Fuse(),), FLOAT32),
    "onnxruntime, lookups inside": (OnnxRuntime(lookups="session"), (Fuse(),), FLOAT32),
    "openvino": (OpenVino(), (Fuse(),), FLOAT32),
    "eager, int8": (Eager(), (QuantizeTables(),), FLOAT32 / 4),
    "onnxruntime, float16": (OnnxRuntime(), (QuantizeTables(bits=16),), FLOAT32 / 2),
}


class Lookup(nn.Module):
    """One large table and a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.tower(self.table(ids)).squeeze(1)


def read_all(fast: CompressedModel) -> None:
    """Every page of the table is read, so that it is in memory."""
    for ids in torch.arange(0, ROWS, 8).split(4096):
        fast(ids)


def work(pipe: Connection, folders: list[str | None]) -> None:
    """Loads one after the other and says how many bytes of this process alone each takes, while all workers hold it."""
    torch.set_num_threads(1)
    for folder in folders:
        # Once before: what libraries take for themselves is not counted.
        held: object = None
        for _ in range(2 if folder else 1):
            del held
            gc.collect()
            before = resident_bytes()
            held = torch.ones(ROWS, WIDTH) if folder is None else load(folder, verify=False)
            if isinstance(held, CompressedModel):
                read_all(held)
        pipe.send("held")
        pipe.recv()
        pipe.send(resident_bytes() - before)
        pipe.recv()
    pipe.close()


def bytes_of_each(folders: list[str | None], workers: int) -> list[list[int]]:
    """For each folder, the bytes that every worker alone holds of it. None stands for a copy of the table."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(workers)]
    started = [context.Process(target=work, args=(end, folders)) for _, end in pairs]
    for one in started:
        one.start()
    try:
        for _, end in pairs:
            end.close()
        found = []
        for _ in folders:
            for step in ("held", "measure", "on"):
                if step == "held":
                    assert [pipe.recv() for pipe, _ in pairs] == ["held"] * workers
                else:
                    for pipe, _ in pairs:
                        pipe.send(step)
                if step == "measure":
                    found.append([pipe.recv() for pipe, _ in pairs])
        return found
    finally:
        for one in started:
            one.join(60)
            one.kill()


@pytest.mark.cluster
def test_four_workers_hold_one_copy(make: Callable[..., CompressedModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = Lookup().eval(), torch.randint(ROWS, (16,))
    names = [name for name, (backend, _, _) in CASES.items() if backend.unavailable() is None]
    for name in names:
        backend, recipe, _ = CASES[name]
        given = {"calibration": [torch.randint(ROWS, (64,))]} if any(not one.exact for one in recipe) else {}
        fast = make(model, example, backends=[backend], recipe=recipe, **given)
        assert [source.backend for source in fast.sources.values()] == [backend]
        assert fast.exact == all(one.exact for one in recipe)
        fast.save(tmp_path / name)
        del fast
    *found, copies = bytes_of_each([*(str(tmp_path / name) for name in names), None], WORKERS)
    assert min(copies) > 0.95 * FLOAT32
    for name, held in zip(names, found, strict=True):
        assert max(held) < CASES[name][2] / 2, f"{name}: {held}"
