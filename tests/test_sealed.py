"""What would change a compressed model says so, and what would not does nothing; who holds one is left in peace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, InputError, compress, follow, load
from fastrec.backends import Eager
from fastrec.sealed import Sealed

Change = Callable[[Any], Any]


class Switched(nn.Module):
    """Scores for users, or for items, as it is switched; `sessions` is a name that the compressed model has for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.sessions = "item", 3
        self.rows = nn.Embedding(50, 8)
        self.user, self.item = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.user if self.mode == "user" else self.item)(self.rows(ids)).squeeze(-1)


@pytest.fixture(scope="module")
def fast() -> CompressedModel:
    return made(Switched())


def made(model: nn.Module) -> CompressedModel:
    return compress(
        model.eval(), torch.arange(8), batch_sizes=(8,), seconds=1, backends=Eager(), progress=False
    )


CHANGES: list[tuple[Change, str]] = [
    (lambda m: m.half(), r"half: .* made for, torch.float32: turn the original into torch.float16"),
    (lambda m: m.bfloat16(), "torch.bfloat16, and compress that"),
    (lambda m: m.double(), "torch.float64, and compress that"),
    (lambda m: m.type(torch.float64), "torch.float64, and compress that"),
    (lambda m: m.to(torch.float16), "torch.float16, and compress that"),
    (lambda m: m.to(dtype=torch.float16), "torch.float16, and compress that"),
    (lambda m: m.to("meta"), "compressed and served on the CPU"),
    (lambda m: m.to(torch.zeros(1, dtype=torch.float64)), "torch.float64, and compress that"),
    (lambda m: m.train(), "cannot be trained: train the original"),
]
NO_CHANGES: list[Change] = [
    lambda m: m.eval(),
    lambda m: m.train(False),
    lambda m: m.float(),
    lambda m: m.cpu(),
    lambda m: m.to("cpu"),
    lambda m: m.to(torch.float32),
    lambda m: m.to("cpu", torch.float32),
    lambda m: m.requires_grad_(False),
    lambda m: m.share_memory(),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_what_would_change_it_is_refused_with_its_cure(
    fast: CompressedModel, change: Change, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        change(fast)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device that is not there")
def test_a_device_that_is_not_there_is_refused(fast: CompressedModel) -> None:
    for change in (lambda: fast.cuda(), lambda: fast.to("cuda")):
        with pytest.raises(InputError, match="compressed and served on the CPU"):
            change()


@pytest.mark.parametrize("change", NO_CHANGES)
def test_what_would_not_change_it_does_nothing(fast: CompressedModel, change: Change) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert change(fast) is fast
        held = nn.Sequential(fast)
        change(held)
    assert not fast.training and not fast.state_dict()
    with pytest.raises(TypeError):
        fast.to(torch.int64)  # as any module says it


def test_of_another_dtype_that_one_is_its_own() -> None:
    twice = made(Switched().double())
    assert twice.double() is twice and twice.to(torch.float64) is twice
    with pytest.raises(InputError, match=r"made for, torch.float64: turn the original into torch.float32"):
        twice.float()


def test_who_holds_one_is_warned_once_and_goes_on(fast: CompressedModel) -> None:
    alone, ids = made(Switched()), torch.arange(8)
    held = nn.Sequential(alone, nn.Linear(8, 2))
    before = alone(ids)
    with pytest.warns(UserWarning, match="stays in evaluation mode") as trained:
        held.train()
    with pytest.warns(UserWarning, match="It stays as it is") as turned:
        held.double()
    assert len(trained) == len(turned) == 1
    assert held[1].training and held[1].weight.dtype is torch.float64 and not alone.training
    assert torch.equal(alone(ids), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held.train()
        held.double()


def test_a_switch_of_the_original_is_refused_and_other_attributes_are_not(fast: CompressedModel) -> None:
    with pytest.raises(
        InputError, match=r"mode is an attribute of the original Switched.*compress that again"
    ):
        fast.mode = "user"
    twin = copy.copy(fast)
    twin.mode = fast.original.model.mode  # type: ignore[assignment]  # what it is already
    twin.version = "3"  # type: ignore[assignment]  # nothing of the original's
    twin.sessions = dict(fast.sessions)
    assert twin.version == "3" and torch.equal(twin(torch.arange(8)), fast(torch.arange(8)))


def test_what_was_loaded_and_what_follows_stay_as_they_are(fast: CompressedModel, tmp_path: Path) -> None:
    fast.save(tmp_path / "a")
    with follow(tmp_path / "a", every=3600) as served:
        for one in (load(tmp_path / "a"), served):
            assert isinstance(one, Sealed) and one.cpu() is one and one.float() is one
            with pytest.raises(InputError, match=r"turn the original into torch.float16"):
                one.half()
            with pytest.raises(InputError, match="cannot be trained"):
                one.train()
        with pytest.warns(UserWarning, match="stays in evaluation mode"):
            nn.Sequential(served).train()
