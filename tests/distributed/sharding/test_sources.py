"""What stands in front of a sharded model: a group of one rank, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastrec import (
    CaptureError,
    CompressedModel,
    IdOutOfRangeError,
    InputError,
    RequestMismatchError,
    compress,
    load,
)
from fastrec.artifact import read_plain
from fastrec.backends import Eager
from fastrec.distributed.sharding import Sharded, plan_shards, shard
from fastrec.distributed.sharding.sources import Entrance

from .models import batch, captured


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(what: Any) -> Sharded:
    return shard(what, plan_shards(what, 1, least_bytes=0), timeout=10, setup_timeout=10)


def test_a_model_and_its_folder_answer_alike(fast: CompressedModel, folder: Path) -> None:
    assert fast.program is not None
    given = batch(9, 3)
    right = fast.program.model(*given)[0]
    for what in (fast, folder, str(folder), load(folder)):
        made = sharded(what)
        assert torch.equal(made(*given), right)
        args, kwargs = made.call_of(given)
        assert torch.equal(made(*args, **kwargs), right)
        assert made.traffic.sent == 0 and made.traffic.samples == 18
        made.close()
        with pytest.raises(Exception, match="closed"):
            made(*given)


def test_called_by_name_and_with_narrower_ids(fast: CompressedModel) -> None:
    made, given = sharded(fast), batch(5, 1)
    names = ("user", "item", "history", "genres", "words", "x")
    right = made(*given)
    assert torch.equal(made(**dict(zip(names, given, strict=True))), right)
    assert torch.equal(made(given[0].int(), *given[1:]), right)


def test_what_the_model_refuses_is_refused_alike(fast: CompressedModel) -> None:
    made = sharded(fast)

    def changed(place: int, tensor: Tensor) -> list[Tensor]:
        return [tensor if k == place else x for k, x in enumerate(batch(5, 1))]

    for place, tensor, error, text in (
        (0, torch.tensor([1, 2, 900, 3, 4]), IdOutOfRangeError, "'user', row 2: got id 900"),
        (0, torch.arange(4), InputError, "the batch has"),
        (0, torch.rand(5), InputError, "dtype torch.float32, expected torch.int64"),
        (2, torch.zeros(5, 4, dtype=torch.int64), InputError, r"is \(5, 4\)"),
        (5, torch.full((5, 2), torch.nan), InputError, "'x', row 0, position 0: got nan"),
    ):
        with pytest.raises(error, match=text):
            made(*changed(place, tensor))
    with pytest.raises(InputError, match="missing feature 'x'"):
        made(*batch(5, 1)[:5])
    # It goes on.
    assert made(*batch(5, 1)).shape == (5,)


def test_batches_for_the_original_are_refused_since_no_rank_has_it(folder: Path) -> None:
    form = read_plain(folder)
    given = batch(3, 0)
    apart = Entrance(replace(form, guard=None, apart=True))
    assert len(apart(given, {})) == 6
    with pytest.raises(InputError, match="no original for such rows"):
        apart((*given[:5], torch.full((3, 2), torch.inf)), {})
    program = replace(form.program, layout=replace(form.program.layout, exempt=(3,)))
    exempt = Entrance(replace(form, program=program))
    with pytest.raises(InputError, match="does not take 3 rows"):
        exempt(given, {})
    assert len(exempt(batch(4, 0), {})) == 6


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(60, 8)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (torch.tanh(self.users(user)) * self.items(item)).sum(1)


def pairs(**settings: Any) -> tuple[Pairs, CompressedModel]:
    torch.manual_seed(0)
    model = Pairs().eval()
    example = (torch.full((16,), 3), torch.arange(16))
    chosen = {"backends": Eager(), **settings}
    return model, compress(model, example, seconds=1, batch_sizes=(16,), progress=False, **chosen)


def test_request_features_are_given_once_or_repeated(tmp_path: Path) -> None:
    model, fast = pairs(request_features=("user",))
    items = torch.randint(60, (7,))
    right = model(torch.full((7,), 5), items)
    fast.save(tmp_path / "pairs")
    for what in (fast, tmp_path / "pairs"):
        made = sharded(what)
        torch.testing.assert_close(made(torch.full((7,), 5), items), right)
        torch.testing.assert_close(made(torch.tensor([5]), items), right)
        with pytest.raises(RequestMismatchError, match="'user', row 1"):
            made(torch.arange(7), items)


def test_a_model_that_serves_as_it_was_is_captured_for_it(tmp_path: Path) -> None:
    model, fast = pairs(backends=())
    assert fast.program is None and fast.plan is None
    made = sharded(fast)
    user, item = torch.randint(40, (5,)), torch.randint(60, (5,))
    assert torch.equal(made(user, item), model(user, item))
    with pytest.raises(IdOutOfRangeError):
        made(user + 40, item)


def test_a_program_is_called_as_its_graph_is() -> None:
    program = captured()
    assert torch.equal(sharded(program)(*batch(3, 0))[0], program.model(*batch(3, 0))[0])


def test_a_model_without_a_graph_is_refused() -> None:
    class Branches(Pairs):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return super().forward(user, item) if int(user.sum()) % 2 else super().forward(user, item) * 2

    fast = compress(
        Branches().eval(), (torch.arange(8), torch.arange(8)), seconds=1, progress=False, backends=Eager()
    )
    with pytest.raises((CaptureError, InputError)):
        plan_shards(fast, 1)
