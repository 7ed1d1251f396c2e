"""What pruning moved is learned back, and a run that was killed goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager
from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.measure import evaluator
from fastrec.program import Program
from fastrec.progress import stages
from fastrec.techniques import Fuse, ProjectPCA, PruneNeurons, QuantizeLinears, Recover
from fastrec.techniques.recovery import training
from tests.checks import assert_unchanged, snapshot

ROUGH = PruneNeurons(0.5, step=4, reconstruct=False)


class Ranker(nn.Module):
    """ids (N, 2), dense (N, 6) -> probability (N,), two layers of it tied to each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(50, 5)
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 32)
        self.norm, self.last = nn.BatchNorm1d(32), nn.Linear(32, 1)
        for linear in (self.first, self.second, self.last):
            nn.init.kaiming_normal_(linear.weight)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        x = torch.cat([self.table(ids).flatten(1), dense], 1)
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return torch.sigmoid(self.last(x)).squeeze(1)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (rows, 2), generator=generator), torch.randn(rows, 6, generator=generator)


@pytest.fixture(scope="module")
def pruned() -> Program:
    """A program whose units were cut without anything to make up for them."""
    plain = capture(Program.read(Ranker().eval(), batch(8)))
    batches = tuple(batch(128, seed) for seed in range(8))
    plain = replace(plain, calibration=batches, origin=plain.model)
    return plain.with_model(ROUGH.apply(plain).model)


def off(program: Program, model: nn.Module) -> float:
    assert program.origin is not None
    given = batch(1000, seed=99)
    with torch.no_grad():
        return float((model(*given)[0] - program.origin(*given)[0]).square().mean())


def test_it_comes_nearer_on_rows_it_never_saw_and_touches_neither_model(pruned: Program) -> None:
    assert pruned.origin is not None
    before, origin = snapshot(pruned.model), snapshot(pruned.origin)
    applied = Recover(steps=150).apply(pruned)
    assert_unchanged(pruned.model, before)
    assert_unchanged(pruned.origin, origin)
    assert off(pruned, applied.model) < 0.4 * off(pruned, pruned.model)
    (change,) = applied.changes
    assert change.rule == "recover" and change.added_bytes > 0 and "150 steps: off by" in change.detail
    # Tables are as they were, in the same memory.
    held = {tensor.data_ptr() for tensor in applied.model.state_dict().values()}
    tables = [t for t in pruned.origin.state_dict().values() if t.shape == (50, 5)]
    assert tables and all(table.data_ptr() in held for table in tables)
    assert not any(tensor.requires_grad for tensor in applied.model.state_dict().values())


def test_the_same_settings_and_seed_give_the_same_and_no_state_is_left(pruned: Program) -> None:
    state = torch.get_rng_state()
    first, again = (Recover(steps=20).apply(pruned) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert first.changes == again.changes
    pairs = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = Recover(steps=20, seed=1).apply(pruned)
    assert other.changes != first.changes


def test_a_killed_run_goes_on_where_it_was(
    pruned: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Recover(steps=30).apply(pruned)
    steps = training.Run._step
    ran: list[int] = []

    def counted(run: training.Run, loss: Any, index: int) -> None:
        ran.append(run.done)
        steps(run, loss, index)

    def killed(run: training.Run, loss: Any, index: int) -> None:
        if run.done == 17:
            raise KeyboardInterrupt
        steps(run, loss, index)

    technique = Recover(steps=30, folder=str(tmp_path))
    monkeypatch.setattr(training.Run, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        technique.apply(pruned)
    monkeypatch.setattr(training.Run, "_step", counted)
    resumed = technique.apply(pruned)
    assert ran[0] == 15 and len(ran) == 15
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and resumed.changes == whole.changes
    ran.clear()
    assert technique.apply(pruned).changes == whole.changes and not ran
    # Another seed is another run; a file that is damaged is none.
    assert Recover(steps=30, seed=2, folder=str(tmp_path)).apply(pruned).changes != whole.changes
    for file in tmp_path.iterdir():
        assert file.suffix == ".safetensors"
        file.write_bytes(file.read_bytes()[:100])
    assert technique.apply(pruned).changes == whole.changes


@pytest.mark.parametrize("name", ["file", "file/below", "no\0path"])
def test_a_folder_that_cannot_be_written_is_refused_before_it_trains(
    pruned: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    ran: list[int] = []
    monkeypatch.setattr(training.Run, "_step", lambda run, loss, index: ran.append(run.done))
    technique = Recover(steps=3, folder=str(tmp_path / name))
    with pytest.raises(InputError, match=r"in which no file can be written .*: give a folder") as caught:
        technique.apply(pruned)
    assert repr(technique.folder) in str(caught.value) and not ran
    # A folder that is not there yet is made, and what tries it leaves nothing.
    fresh = tmp_path / "fresh" / "below"
    Recover(steps=3, folder=str(fresh)).apply(pruned)
    assert ran and {file.suffix for file in fresh.iterdir()} == {".safetensors"}


def test_where_there_is_nothing_to_learn_it_says_so(pruned: Program) -> None:
    plain = pruned.with_model(pruned.origin) if pruned.origin is not None else pruned
    for program in (plain, replace(pruned, origin=None)):
        applied = Recover().apply(program)
        assert applied.model is program.model and not applied.changes
        assert applied.skipped[0].reason == "nothing was approximated: there is nothing to recover"


def test_a_graph_without_gradients_is_left_with_the_cure(pruned: Program) -> None:
    coded = pruned.with_model(QuantizeLinears(least=0).apply(pruned).model)
    applied = Recover(steps=3).apply(coded)
    assert applied.model is coded.model
    assert "put Recover before Fuse and what quantizes" in applied.skipped[0].reason


def test_a_batch_that_overflows_teaches_nothing() -> None:
    run = training.Run.begin({"w": torch.ones(1)}, 2, 0.1)
    run._step(lambda tensors, batch: (tensors["w"] * torch.inf).sum(), 0)
    assert bool((run.now["w"] == 1).all())


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"seed": -1}, {"folder": 3}]
)
def test_bad_settings_are_named(settings: Any) -> None:
    with pytest.raises(InputError, match=rf"Recover\({next(iter(settings))}=...\) takes"):
        Recover(**settings)


def test_what_prunes_is_judged_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Ranker().eval()
    given = batch(3000, seed=5)
    with torch.no_grad():
        labels = (model(*given) > torch.rand(3000, generator=torch.Generator().manual_seed(0))).long()
    options: dict[str, Any] = {
        "calibration": [batch(256, seed) for seed in range(12)],
        "evaluate": evaluator([given], labels),
        "budget": fastrec.Budget({"auc": 0.015}),
        "backends": [Eager()],
        "batch_sizes": (64,),
        "seconds": 2,
        "progress": False,
    }
    alone = fastrec.compress(model, batch(64), recipe=[ROUGH, Fuse()], **options)
    assert any(skip.site == "budget" and skip.rule == "prune_neurons" for skip in alone.report.skipped)
    learn, learned = Recover._learn, []
    monkeypatch.setattr(Recover, "_learn", lambda self, *given: learned.append(self) or learn(self, *given))
    mended = fastrec.compress(model, batch(64), recipe=[ROUGH, Recover(steps=200), Fuse()], **options)
    steps = {step.technique: step.changes for step in mended.report.steps}
    assert steps["prune_neurons"] and steps["recover"]
    # As it was judged, and not once more in its own place.
    assert len(learned) == 1
    assert not any(skip.rule == "prune_neurons" and skip.site == "budget" for skip in mended.report.skipped)


def test_it_says_how_far_it_is_where_that_is_shown(pruned: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrec import progress

    said: list[str] = []
    token = progress._SHOWN.set(said.append)
    try:
        Recover(steps=20).apply(pruned)
    finally:
        progress._SHOWN.reset(token)
    assert len(said) == 10 and said[-1].startswith("recover: step 20 of 20, off by ")
    with stages(False):
        progress.tell("nobody hears this")


def test_it_recovers_what_other_techniques_moved() -> None:
    plain = capture(Program.read(Ranker().eval(), batch(8)))
    plain = replace(plain, calibration=tuple(batch(128, s) for s in range(8)), origin=plain.model)
    narrow = plain.with_model(ProjectPCA(rank=2, least_bytes=0, least=0).apply(plain).model)
    assert narrow.model is not plain.model
    applied = Recover(steps=100).apply(narrow)
    assert applied.changes and off(plain, applied.model) < off(plain, narrow.model)
