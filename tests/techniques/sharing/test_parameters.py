"""Models that cannot be captured have their equal matrices made one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.backends import Eager
from fastrec.errors import InputError
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import ShareEmbeddings
from tests.checks import assert_unchanged, snapshot

SHARE = ShareEmbeddings(least_bytes=0)


class Branching(nn.Module):
    """Reads values as it runs; equal tables, a recurrence with a list of its own weights, a tie, a table that it writes to."""

    def __init__(self, norm: float | None = None) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(40, 8)
        self.again, self.other = nn.Embedding(40, 8), nn.Embedding(40, 8, max_norm=norm)
        self.first, self.second = nn.GRU(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.again.weight = self.users.weight
        self.items.weight.data.copy_(self.users.weight)
        self.other.weight.data.copy_(self.users.weight)
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, ids: Tensor) -> Tensor:
        steps = 2 if ids.sum().item() >= 0 else 1
        rows = self.users(ids) + self.again(ids) * self.items(ids) + self.other(ids.flip(1))
        for _ in range(steps):
            rows = self.second(self.first(rows)[0])[0]
        return rows.sum((1, 2))


def ids(rows: int) -> Tensor:
    return torch.randint(40, (rows, 5), generator=torch.Generator().manual_seed(rows))


def test_equal_matrices_are_one_on_a_draft() -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    before = snapshot(model)
    program = Program.read(model, ids(6))
    made = SHARE.apply(program)
    assert_unchanged(model, before)
    assert {change.site for change in made.changes} == {
        "items.weight", "other.weight", "second.weight_ih_l0", "second.weight_hh_l0"
    }  # fmt: skip
    assert ("again.weight", "it is one tensor with users.weight already") in [
        (skip.site, skip.reason) for skip in made.skipped
    ]
    draft = made.model
    assert isinstance(draft, Branching)
    assert draft.items.weight is draft.other.weight is draft.again.weight is model.users.weight
    matrices = 40 * 8 + 2 * 24 * 8
    assert tensor_bytes(draft) == 4 * (matrices + 4 * 24)
    with torch.no_grad():
        for rows in (1, 6, 33):
            assert torch.equal(draft(ids(rows)), model(ids(rows)))
    assert SHARE.apply(program.with_model(draft)).changes == ()
    only = ShareEmbeddings(least_bytes=0, only=("items.weight", "users.weight")).apply(program)
    assert [change.site for change in only.changes] == ["items.weight"]
    with pytest.raises(InputError, match=r"'nothing', which is no table of this model: it has users.weight"):
        ShareEmbeddings(least_bytes=0, only=("nothing",)).apply(program)


def test_a_matrix_that_the_model_writes_to_is_left() -> None:
    torch.manual_seed(0)
    program = Program.read(Branching(norm=0.5).eval(), ids(6))
    program.model.other.weight.data.copy_(program.model.users.weight)  # type: ignore[union-attr]  # a module's attribute
    made = SHARE.apply(program)
    assert ("other.weight", "the model writes to it on each call") in [
        (skip.site, skip.reason) for skip in made.skipped
    ]
    assert "other.weight" not in {change.site for change in made.changes}


def test_what_was_shared_exactly_is_judged_and_served_as_exact() -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    fast = compress(
        model, ids(6), recipe=ShareEmbeddings(keep=0.5, least_bytes=0), backends=[Eager()], batch_sizes=(8,), seconds=2,
        progress=False,
    )  # fmt: skip
    assert any("share_embeddings edited its modules" in note for note in fast.report.notes)
    assert any("rows are not" in skip.reason for skip in fast.report.skipped)
    with torch.no_grad():
        torch.testing.assert_close(fast(ids(9)), model(ids(9)))
    exact = compress(
        model, ids(6), recipe=SHARE, backends=[Eager()], batch_sizes=(8,), seconds=2, progress=False
    )
    assert exact.exact and exact.recipe.exact and len(exact.report.steps[0].changes) == 4
