"""`compress` over the zoo: the same answers, the original untouched, every reason told."""

from __future__ import annotations

import gc
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import InputError, Report, TechniqueError, compress, pipeline
from fastrec.backends import Backend, Eager, OnnxRuntime
from fastrec.techniques import Fuse
from fastrec.techniques.base import Applied, Technique

from .checks import assert_as_good, assert_same_structure, assert_unchanged, call, double, flat, snapshot
from .zoo import ZOO, Entry, make


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def squeezed(
    entry: Entry, backends: list[Backend] | None = None, **options: object
) -> tuple[nn.Module, fastrec.CompressedModel]:
    model = make(entry)
    batch = entry.batch(5, torch.Generator().manual_seed(1))
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    made = compress(
        target, batch, batch_sizes=(1, 33), seconds=1.5, progress=False, backends=backends, **options
    )  # type: ignore[arg-type]
    return model, made


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_every_model_comes_back_as_good_as_it_was(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever serves answers well: little is spent timing them.
    monkeypatch.setattr(pipeline, "share", lambda *_: 0.1)
    before = snapshot(make(entry))
    model, fast = squeezed(entry, [Eager(), OnnxRuntime()])
    assert {k: v for k, v in snapshot(model).items() if "?" not in k}.keys() == {
        k for k in before if "?" not in k
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for rows in entry.sizes:
        batch = entry.batch(rows, torch.Generator().manual_seed(rows + 7))
        original = call(getattr(model, entry.entry), batch)
        args, kwargs = fast.original.call_of(batch)
        answer = fast(*args, **kwargs)
        assert_same_structure(answer, original)
        assert_as_good(flat(answer), flat(original), double(model, entry.entry, batch))
    report = fast.report
    if not entry.capturable:
        assert report.status == "unchanged"
        assert any(skip.reason for skip in report.skipped)
    assert all(skip.reason for skip in report.skipped)
    assert all(trial.reason for trial in report.trials if trial.p50 is None)
    assert not [trial.reason for trial in report.trials if "differ" in trial.reason]
    assert Report.from_json(report.to_json()) == report


def test_nothing_of_the_caller_changes() -> None:
    entry = ZOO[0]
    model = make(entry).train()
    before = snapshot(model)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    filters, threads = list(warnings.filters), torch.get_num_threads()
    fast = compress(
        model, entry.batch(4, torch.Generator().manual_seed(0)), batch_sizes=(1,), seconds=1, progress=False
    )
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert (list(warnings.filters), torch.get_num_threads()) == (filters, threads)
    assert_unchanged(model, before)
    assert any("training mode" in note for note in fast.report.notes)


def test_the_original_may_go() -> None:
    entry = next(entry for entry in ZOO if entry.name == "dcnv2")
    model, fast = squeezed(entry, [Eager()])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert fast(**entry.batch(3, torch.Generator())).shape == (3,)


def test_tables_are_not_held_twice(served_anyway: None) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(5000, 16) for _ in range(8))
            self.first = nn.ModuleList(nn.Embedding(5000, 1) for _ in range(8))
            self.head = nn.Linear(8 * 16, 1)

        def forward(self, ids: Tensor) -> Tensor:
            rows = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
            first = torch.cat([table(ids[:, i]) for i, table in enumerate(self.first)], 1)
            return self.head(rows) + first.sum(1, keepdim=True)

    fast = compress(
        Wide().eval(),
        torch.randint(0, 5000, (8, 8)),
        batch_sizes=(1,),
        seconds=3,
        backends=Eager(),
        progress=False,
    )
    assert fast.report.status == "improved"
    assert fast.report.memory.after_bytes < 1.1 * fast.report.memory.before_bytes
    # Another shape than was foreseen still goes to the original, which reads the stacked table now.
    with pytest.raises(InputError):
        fast(torch.zeros(3, 9, dtype=torch.int64)[:, :7])


def test_answers_are_ordinary_tensors() -> None:
    entry = ZOO[2]
    _, fast = squeezed(entry, [Eager()])
    answer = fast(**entry.batch(3, torch.Generator()))
    assert not answer.requires_grad and not answer.is_inference()
    answer.add_(1)


class Broken(Technique):
    name = "broken"
    level = "graph"

    @property
    def exact(self) -> bool:
        return True

    def apply(self, program: object) -> Applied:
        raise AssertionError


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": object()}, "expected a torch module"),
        ({"model": nn.Linear}, "make an instance"),
        ({"batch": {}}, "no tensor"),
        ({"batch": torch.empty(0, 4)}, "the batch is empty"),
        ({"batch": torch.empty(3, 4, device="meta")}, "'input' is on meta, expected cpu"),
        ({"model": nn.Linear(4, 2, device="meta")}, "the model's 'weight' is on meta"),
        ({"batch": torch.randn(3, 7)}, "does not take this batch"),
        ({"recipe": "fuse"}, "recipe takes"),
        ({"recipe": [Fuse]}, "make an instance"),
        ({"backends": ["eager"]}, "not a backend"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
        ({"seconds": 0}, "seconds"),
        ({"calibration": [torch.randn(2, 4), "x"]}, "calibration batch 1"),
        ({"budget": 0.1, "evaluate": len}, "budget takes a Budget"),
    ],
)
def test_wrong_calls_say_so(wrong: dict[str, object], words: str) -> None:
    arguments = {
        "model": nn.Linear(4, 2),
        "batch": torch.randn(3, 4),
        "seconds": 1.0,
        "progress": False,
    } | wrong
    with pytest.raises(InputError, match=words):
        compress(**arguments)  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_are_told_and_a_model_of_none_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 1)).eval()
    with torch.no_grad():
        model[0].weight[3] = torch.nan
    ids = torch.tensor([[0, 1], [3, 4], [5, 6], [7, 8]])
    made = compress(model, ids, seconds=0.5, batch_sizes=(4,), backends=[Eager()], progress=False)
    (note,) = [note for note in made.report.notes if "NaN" in note]
    assert note.startswith("'0.weight' of the model holds NaN") and "1 of 4 numbers" in note
    assert made(ids).isnan().flatten().tolist() == [False, True, False, False]
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(InputError, match=r"NaN alone .*'0\.weight' of the model"):
        compress(model, ids, seconds=0.5, batch_sizes=(4,), backends=[Eager()], progress=False)


def test_what_is_compressed_already() -> None:
    made = compress(
        nn.Linear(4, 2), torch.randn(3, 4), batch_sizes=(3,), seconds=0.5, backends=[], progress=False
    )
    with pytest.raises(InputError, match="compressed already"):
        compress(made, torch.randn(3, 4))


def test_a_recipe_for_a_model_that_cannot_be_captured() -> None:
    entry = next(entry for entry in ZOO if entry.name == "unreadable")
    with pytest.raises(TechniqueError, match="cannot be captured"):
        squeezed(entry, recipe=Fuse())
