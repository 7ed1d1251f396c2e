"""A model over real processes: the answers of one process, errors that all of them hear of, and never a hang."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from fastrec import CompressedModel, InputError, compress, load
from fastrec.backends import Eager
from fastrec.distributed.sharding import ShardPlan, Traffic, plan_shards, shard

from .models import batch
from .ranks import Ranks

pytestmark = pytest.mark.cluster
TRAFFIC = [batch(64, seed) for seed in range(4)]
Answers = list[list[float]]


def planned(fast: CompressedModel, world: int, **settings: Any) -> str:
    return plan_shards(fast, world, **{"traffic": TRAFFIC, "least_bytes": 0, **settings}).to_json()


def sharded(
    state: dict[str, Any], folder: Path, plan: str, members: int, mapped: bool, timeout: float = 30.0
) -> None:
    """This rank's part, if it is one of the first so many."""
    if ("group", members) not in state:
        # Of all ranks, as torch has it.
        state["group", members] = dist.new_group(list(range(members))) if members < 4 else None
    if state["rank"] >= members:
        return
    group = state["group", members]
    what: Any = folder if mapped else load(folder)
    state["model"] = shard(what, ShardPlan.from_json(plan), group=group, timeout=timeout, verify=False)


def answers(state: dict[str, Any], sizes: list[int]) -> list[float] | None:
    """To a batch of this rank's size; none where it has no batch at hand."""
    rank = state["rank"]
    if rank >= len(sizes):
        return None
    if sizes[rank] < 0:
        state["model"].take_part()
        return None
    found = state["model"](*batch(sizes[rank], rank))
    assert not found.requires_grad
    return found.tolist()  # type: ignore[no-any-return]


def alone(fast: CompressedModel, sizes: list[int]) -> Answers:
    """The same of one process, by torch's own kernels."""
    assert fast.program is not None
    return [fast.program.model(*batch(size, rank))[0].tolist() for rank, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("world", "place", "mapped"), [(2, "table", False), (4, "rows", True), (4, "best", False)]
)
def test_answers_are_the_bits_of_one_process(
    ranks: Ranks, fast: CompressedModel, folder: Path, world: int, place: str, mapped: bool
) -> None:
    ranks.call(sharded, folder, planned(fast, world, place=place, form="rows"), world, mapped)
    for sizes in ([64] * world, [1, 200, 3, 50][:world], [0, 33, 0, 0][:world]):
        assert ranks.call(answers, sizes)[:world] == alone(fast, sizes)
    sizes = [-1, 16, -1, 5][:world]
    found = ranks.call(answers, sizes)
    assert found[0] is None and found[1] == alone(fast, [1, 16])[1]
    ranks.call(closed)


def test_sums_are_those_of_one_process_up_to_rounding(
    ranks: Ranks, fast: CompressedModel, folder: Path
) -> None:
    plan = plan_shards(fast, 4, traffic=TRAFFIC, least_bytes=0, place="table", hot=0)
    assert any("sums" in table.forms for table in plan.tables)
    ranks.call(sharded, folder, plan.to_json(), 4, True)
    sizes = [64, 0, 7, 100]
    for found, right in zip(ranks.call(answers, sizes), alone(fast, sizes), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(right), rtol=0, atol=1e-6)


def measured(state: dict[str, Any], rank: int) -> Traffic:
    before = state["model"].traffic
    for given in TRAFFIC:
        state["model"](*given)
    after = state["model"].traffic
    assert after.calls == before.calls + len(TRAFFIC)
    return Traffic(*(b - a for a, b in zip(vars(before).values(), vars(after).values(), strict=True)))


def test_what_is_measured_is_what_was_planned(ranks: Ranks, fast: CompressedModel, folder: Path) -> None:
    plan = plan_shards(fast, 4, traffic=TRAFFIC, least_bytes=0)
    ranks.call(sharded, folder, plan.to_json(), 4, False)
    found = sum(ranks.call(measured, 0), Traffic())
    assert found.samples == 4 * plan.samples
    assert found.sent == found.received
    assert found.asked == found.asked_by and found.answered == found.answered_to
    counts = 4 * 3 * plan.per_call * plan.batches
    assert found.sent == pytest.approx(plan.per_sample * found.samples + counts)
    assert found.sent == found.asked + found.answered + counts


def with_a_bad_id(state: dict[str, Any], who: int) -> None:
    given = list(batch(8, 0))
    if state["rank"] == who:
        given[0] = given[0].clone()
        given[0][3] = 900
    state["model"](*given)


def with_a_bad_shape(state: dict[str, Any], who: int) -> None:
    given = list(batch(8, 0))
    if state["rank"] == who:
        given[2] = given[2][:, :4]
    state["model"](*given)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (with_a_bad_id, "IdOutOfRangeError", "row 3: got id 900"),
        (with_a_bad_shape, "InputError", "is (8, 4)"),
    ],
)
def test_what_one_rank_refuses_is_an_error_of_all_and_the_next_call_goes_on(
    ranks: Ranks, fast: CompressedModel, folder: Path, call: Any, kind: str, said: str
) -> None:
    ranks.call(sharded, folder, planned(fast, 4, form="rows"), 4, False)
    found = ranks.errors(call, 2)
    assert found[2].kind == kind and said in found[2].text
    for rank in (0, 1, 3):
        assert found[rank].kind == "PeerError" and "rank 2 could not take part" in found[rank].text
    sizes = [5, 6, 7, 8]
    assert ranks.call(answers, sizes) == alone(fast, sizes)


def with_another_plan(state: dict[str, Any], folder: Path, plan: str, other: str) -> None:
    shard(folder, ShardPlan.from_json(other if state["rank"] == 1 else plan), setup_timeout=30, verify=False)


def test_ranks_that_do_not_agree_are_told_so(ranks: Ranks, fast: CompressedModel, folder: Path) -> None:
    plan = planned(fast, 4)
    found = ranks.errors(with_another_plan, folder, plan, planned(fast, 4, hot=0))
    assert {(one.kind, "different plans" in one.text) for one in found} == {("InputError", True)}
    found = ranks.errors(with_another_plan, folder, plan, planned(fast, 2))
    assert found[1].kind == "InputError" and "for 2 ranks, the group has 4" in found[1].text
    assert found[0].kind == "PeerError" and "rank 1 could not do its part" in found[0].text


def closed(state: dict[str, Any]) -> None:
    if "model" in state:
        state["model"].close()


def touched(state: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Bytes of the folder's tensors that are in this process's memory, and in the file."""
    name = str(folder / "tensors.safetensors")
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.endswith(name)]
    sizes = [
        int(line.split()[1]) for at in starts for line in lines[at : at + 30] if line.startswith("Rss:")
    ][: len(starts)]
    return 1024 * sum(sizes), Path(name).stat().st_size


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose one table is large enough to see who maps which part of it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(300_000, 32), torch.nn.Flatten(), torch.nn.Linear(32, 1)
    ).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrec.pipeline.share", lambda *_: 0.1)
        patch.setattr("fastrec.pipeline.worth_it", lambda result: True)
        made = compress(
            model, torch.arange(64), recipe=[], backends=Eager(), batch_sizes=(64,), seconds=1, progress=False
        )
    where = tmp_path_factory.mktemp("large") / "model"
    made.save(where)
    return where


def all_of_it(state: dict[str, Any]) -> None:
    for start in range(0, 300_000, 50_000):
        state["model"](torch.arange(start, start + 50_000))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not say what is mapped")
def test_a_rank_maps_its_own_rows_of_a_folder_alone(ranks: Ranks, large: Path) -> None:
    plan = plan_shards(large, 4, hot=0, place="rows")
    ranks.call(sharded, large, plan.to_json(), 4, True)
    ranks.call(all_of_it)
    for rank, (held, size) in enumerate(ranks.call(touched, large)):
        own = plan.bytes_on(rank)
        assert own < size / 2
        # The system maps some pages around those that are read, up to 2 MiB at each end.
        assert own <= held < own + size / 8


def test_without_a_process_group_it_is_said_how_to_make_one(fast: CompressedModel) -> None:
    plan = plan_shards(fast, 1)
    with pytest.raises(InputError, match="init_process_group"):
        shard(fast, plan)


def with_another_model(state: dict[str, Any], folder: Path, plan: str) -> None:
    made = load(folder)
    assert made.program is not None
    if state["rank"] == 3:
        # As where one machine has the artifact of yesterday.
        for tensor in made.program.model.state_dict().values():
            if tensor.is_floating_point() and tensor.numel() == 16:
                tensor.add_(1)
    shard(made, ShardPlan.from_json(plan), setup_timeout=30)


def test_ranks_with_other_weights_are_told_so(ranks: Ranks, fast: CompressedModel, folder: Path) -> None:
    found = ranks.errors(with_another_model, folder, planned(fast, 4))
    assert {(one.kind, "different plans or models" in one.text) for one in found} == {("InputError", True)}


def without_an_answer(state: dict[str, Any]) -> None:
    if state["rank"] == 1:

        def answer(*_: Any) -> torch.Tensor:
            raise MemoryError("no room for an answer")

        state["model"]._parts.channels[0].answer = answer
    state["model"](*batch(4, 0))


def test_a_rank_that_fails_among_exchanges_ends_the_calls_of_all(
    ranks: Ranks, fast: CompressedModel, folder: Path
) -> None:
    ranks.call(sharded, folder, planned(fast, 4), 4, True, 2.0)
    found = ranks.errors(without_an_answer)
    assert [one.kind for one in found] == ["PeerLostError", "MemoryError", "PeerLostError", "PeerLostError"]
    again = ranks.errors(answers, [4, 4, 4, 4])
    assert {one.kind for one in again} == {"PeerLostError"} and "out of step" in again[1].text


def stopped(state: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def gone(state: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def anew(state: dict[str, Any], folder: Path, plan: str, setup_timeout: float) -> None:
    shard(folder, ShardPlan.from_json(plan), setup_timeout=setup_timeout, verify=False)


def lost(ranks: Ranks, timeout: float) -> None:
    """That the first three say of the fourth, when they are called, and once more."""
    for _ in range(2):
        # The second call does not wait at all: the ranks that are left are out of step.
        ranks.begin(answers, [4, 4, 4, 4], only=(0, 1, 2))
        for rank in range(3):
            error = ranks.error(rank)
            assert error.kind == "PeerLostError" and "lost a peer" in error.text
            assert f"within {timeout:g} s" in error.text


def test_a_rank_that_does_not_answer_is_a_named_error_and_may_come_back(
    ranks: Ranks, fast: CompressedModel, folder: Path
) -> None:
    plan, sizes = planned(fast, 4, form="rows"), [4, 4, 4, 4]
    ranks.call(sharded, folder, plan, 4, True, 2.0)
    assert ranks.call(answers, sizes) == alone(fast, sizes)
    ranks.begin(stopped, only=(3,))
    lost(ranks, 2.0)
    os.kill(ranks.processes[3].pid or 0, signal.SIGCONT)
    ranks.result(3)
    ranks.call(sharded, folder, plan, 4, True)
    assert ranks.call(answers, sizes) == alone(fast, sizes)


def test_ranks_that_did_not_meet_meet_at_the_next_call(
    ranks: Ranks, fast: CompressedModel, folder: Path
) -> None:
    plan, sizes = planned(fast, 4, form="rows"), [4, 4, 4, 4]
    for only in ((0, 1, 2), (0,)):
        ranks.begin(anew, folder, plan, 1.0, only=only)
        for rank in only:
            error = ranks.error(rank)
            assert error.kind == "PeerLostError" and "not every one of 4 ranks came within 1 s" in error.text
            assert "Call it again on all of them" in error.text
    ranks.call(sharded, folder, plan, 4, True)
    assert ranks.call(answers, sizes) == alone(fast, sizes)


def test_a_rank_that_is_killed_is_a_named_error_of_all_others(
    ranks: Ranks, fast: CompressedModel, folder: Path
) -> None:
    """The last one of this file: there are three ranks afterwards."""
    ranks.call(sharded, folder, planned(fast, 4), 4, True)
    ranks.call(answers, [4, 4, 4, 4])
    ranks.begin(gone, only=(3,))
    ranks.processes[3].join(30)
    assert ranks.processes[3].exitcode == -signal.SIGKILL
    lost(ranks, 30.0)
    # Nor does anybody wait for it to make the model anew.
    ranks.begin(anew, folder, planned(fast, 4), 2.0, only=(0, 1, 2))
    for rank in range(3):
        error = ranks.error(rank)
        assert error.kind == "PeerLostError" and "not every one of 4 ranks came within 2 s" in error.text
