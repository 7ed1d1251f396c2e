"""What stays in memory once a plan is chosen: the tables of the form that serves, and of no other."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import compress, pipeline
from fastrec.backends import Eager
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables

ROWS, WIDTH, LONG = 20_000, 16, 20_000
CODED = (torch.uint8, (ROWS, WIDTH + 8))
FLOAT = (torch.float32, (ROWS, WIDTH))
Choose = Callable[[str], None]


class Lookup(nn.Module):
    """A table of more than 1 MiB, its rows added up for a user and an item, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        out: Tensor = self.top(torch.relu(self.table(user) + self.table(item)))
        return out


def batch(rows: int = 8) -> dict[str, Tensor]:
    return {"user": torch.zeros(rows, dtype=torch.long), "item": torch.arange(rows)}


def served(**options: Any) -> fastrec.CompressedModel:
    """A compressed model whose original nobody else holds."""
    torch.manual_seed(0)
    return compress(
        Lookup().eval(), batch(), recipe=[Fuse(), QuantizeTables()], backends=[Eager()], batch_sizes=(8,), seconds=60,
        progress=False, **options,
    )  # fmt: skip


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Says who serves, whatever the clock says: the "exact" session, the "lossy" one, or the "original"."""

    def serve(who: str) -> None:
        def preferred(trials: Any, *first: Any) -> str:
            names = {trial.session for trial in trials}
            exact = set(first[0])
            return str(min(names - exact if who == "lossy" else names & exact))

        monkeypatch.setattr(pipeline, "preferred", preferred)
        monkeypatch.setattr(pipeline, "worth_it", lambda result: who != "original")

    return serve


def alive(kind: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """How many memories of such a tensor there are in the process; a view counts as what it keeps alive."""
    dtype, shape = kind
    size = dtype.itemsize * shape[0] * shape[1]
    held = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), Tensor)
        and type(one) in (Tensor, nn.Parameter)
        # What a library packed says nothing of its memory.
        and one.layout is torch.strided
    ]
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held if one.dtype is dtype
    }
    return sum(nbytes == size for nbytes in storages.values())


@pytest.fixture(autouse=True, scope="module")
def _not_looked_at() -> None:
    """What tests of other files left is none of these; going through all of it took most of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_of_other_tests() -> None:
    gc.collect()


@pytest.fixture(autouse=True)
def _no_form_is_left_out_for_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time for every form (a slow machine would drop some), but little is spent timing them."""
    monkeypatch.setattr(pipeline, "share", lambda *_: 0.1)


@pytest.mark.parametrize("request_features", [None, ["user"]])
@pytest.mark.parametrize("keep_original", [True, False])
def test_where_the_exact_form_serves_no_coded_table_stays(
    choose: Choose, request_features: list[str] | None, keep_original: bool
) -> None:
    choose("exact")
    fast = served(request_features=request_features, keep_original=keep_original)
    assert fast.report.sizes[0].session == "eager, exact" and fast.exact
    assert (alive(CODED), alive(FLOAT)) == (0, 1)
    assert fast.report.memory.after_bytes == fast.report.memory.before_bytes


@pytest.mark.parametrize("request_features", [None, ["user"]])
def test_where_the_coded_form_serves_the_float_table_goes_with_the_original(
    choose: Choose, request_features: list[str] | None
) -> None:
    choose("lossy")
    fast = served(request_features=request_features, keep_original=False)
    assert fast.report.sizes[0].session == "eager" and not fast.exact
    assert (alive(CODED), alive(FLOAT)) == (1, 0)
    assert fast.report.memory.before_bytes > 2.5 * fast.report.memory.after_bytes
    # It still serves what no session was made for.
    right = fast(**batch(8))
    assert torch.allclose(fast.original.function(**batch(8)), right, atol=1e-6)
    assert fast(**batch(0)).shape == (0, 1)


def test_where_the_coded_form_serves_and_the_original_is_kept_both_stay(choose: Choose) -> None:
    choose("lossy")
    fast = served()
    assert (alive(CODED), alive(FLOAT)) == (1, 1)
    assert fast.report.memory.after_bytes > fast.report.memory.before_bytes


@pytest.mark.parametrize("request_features", [None, ["user"]])
def test_where_the_original_serves_only_its_table_stays(
    choose: Choose, request_features: list[str] | None
) -> None:
    choose("original")
    fast = served(request_features=request_features, keep_original=False)
    assert fast.report.status == "unchanged" and fast.exact
    assert (alive(CODED), alive(FLOAT)) == (0, 1)
    if request_features:  # a catalogue is scored as the original would
        rows = torch.arange(50)
        scores, _ = fast.precompute({"item": rows}).topk({"user": torch.zeros(1, dtype=torch.long)}, 50)
        right = fast.original.function(torch.zeros(50, dtype=torch.long), rows)
        assert torch.allclose(scores.flatten(), right.flatten().sort(descending=True).values, atol=1e-6)


@pytest.mark.parametrize("who", ["exact", "lossy", "original"])
def test_calibration_batches_do_not_stay(choose: Choose, who: str) -> None:
    choose(who)
    given = [batch(300)]
    held = weakref.ref(given[0]["item"])
    fast = served(calibration=given, request_features=["user"])
    del given
    assert held() is None
    assert fast.report.sizes


class Judge(nn.Module):
    """Two maps, one of more than 1 MiB, in code that reads a value as it runs, so that it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.top = nn.Linear(LONG, WIDTH), nn.Linear(WIDTH, 320)

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any().item():
            raise ValueError("got NaN")
        out: Tensor = self.top(torch.relu(self.wide(x)))
        return out


@pytest.mark.parametrize(
    "session", ["eager, modules", "eager, modules, int8 from 32,768 weights", "original"]
)
@pytest.mark.parametrize("keep_original", [True, False])
def test_of_a_model_that_was_not_captured_one_form_stays(
    monkeypatch: pytest.MonkeyPatch, session: str, keep_original: bool
) -> None:
    served = session != "original"
    monkeypatch.setattr(pipeline, "preferred", lambda trials, *first: session if served else "eager, modules")
    monkeypatch.setattr(pipeline, "worth_it", lambda result: served)
    torch.manual_seed(0)
    given = [torch.randn(300, LONG)]
    held = weakref.ref(given[0])
    fast = compress(
        Judge().eval(), torch.randn(8, LONG), calibration=given, recipe=[QuantizeLinears()], backends=[Eager()],
        batch_sizes=(8,), seconds=60, progress=False, keep_original=keep_original,
    )  # fmt: skip
    del given
    assert held() is None and fast.exact is not served
    assert alive((torch.int8, (WIDTH, LONG))) == int(served)
    assert alive((torch.float32, (WIDTH, LONG))) == int(keep_original or not served)
    assert fast(torch.randn(9, LONG)).shape == (9, 320)
    if served and not keep_original:
        assert fast.report.memory.before_bytes > 3.5 * fast.report.memory.after_bytes


SCRIPT = """
import gc, json, psutil, sys, torch
from torch import nn
from fastrec import compress, pipeline
from fastrec.backends import Eager
from fastrec.techniques import Fuse, QuantizeTables

class Lookup(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.table, self.top = nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_()), nn.Linear(width, 1)

    def forward(self, ids):
        return self.top(torch.relu(self.table(ids).sum(1)))

# Which is faster is not what is asked here.
pipeline.preferred = lambda trials, *first: next(one.session for one in trials if one.session not in first[0])
pipeline.worth_it = lambda result: True

def held():
    # USS but for files: pages of libraries count there while no other process maps them.
    gc.collect()
    maps = psutil.Process().memory_maps()
    return sum(one.private_dirty + one.private_clean for one in maps if one.path.startswith("["))

def served(model):
    fast = compress(model, torch.arange(32).view(8, 4), recipe=[Fuse(), QuantizeTables(least_bytes=0)], backends=[Eager()],
                    batch_sizes=(8,), seconds=2, progress=False, keep_original=False)
    assert fast.report.sizes[0].session == "eager", fast.report
    return fast

torch.set_num_threads(1)
torch.manual_seed(0)
for width in (64, 16):
    fast = served(Lookup(20_000, width).eval())  # what first calls import and keep
del fast
found = []
for width in (64, 16):
    empty = held()
    model = Lookup(50_000_000 // width, width).eval()
    before = held()
    fast = served(model)
    del model
    after = held()
    del fast
    left = held()
    found.append((before - empty, after - left, left - empty))
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory no file stands behind")
def test_the_process_is_smaller_by_what_tables_take() -> None:
    # glibc would keep up to 64 MiB of what is freed for what comes next.
    memory = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    env = os.environ | memory | {"PYTHONPATH": str(Path(fastrec.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    for (before, after, left), times in zip(json.loads(done.stdout), (3.3, 2.6), strict=True):
        assert before > 190e6
        assert before / after >= times, (before, after)
        # Of either form, nothing is left behind the model's back.
        assert left < 20e6
