"""What a row's answer may depend on, and what is refused: ids, numbers that are not finite, neighbours, numbers of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrec import CompressedModel, IdOutOfRangeError, InputError, compress
from fastrec.backends import Eager, OnnxRuntime
from fastrec.verify import neighbours

from .conftest import FIELDS, Ranker, batch_of


def test_no_id_that_a_table_lacks_is_answered(fast: CompressedModel) -> None:
    """T1: seven wrong ids in each of 26 features, all refused with feature, row, value and range."""
    refused = 0
    for field in range(FIELDS):
        size = 40 + field
        for wrong in (size, size + 1, -1, -size, -size - 1, 2**31, 2**63 - 1):
            batch = [tensor.clone() for tensor in batch_of(6)]
            batch[1 + field][4] = wrong
            with pytest.raises(
                IdOutOfRangeError, match=rf"row 4: got id {wrong}, expected 0 <= id < {size}"
            ) as caught:
                fast(*batch)
            assert isinstance(caught.value, IndexError) and caught.value.row == 4
            assert caught.value.feature == fast.original.layout.features[1 + field].name
            refused += 1
    assert refused == 7 * FIELDS


@pytest.mark.parametrize("backend", [Eager(), OnnxRuntime()], ids=lambda backend: backend.name)
def test_what_is_not_finite_stays_in_its_row(backend: Eager, ranker: Ranker, served_anyway: None) -> None:
    """T2: rows of NaN, +Inf and -Inf among 64 answer as the model's do, the other 61 bit for bit as without them."""
    torch.set_num_threads(1)
    fast = compress(
        ranker,
        batch_of(8),
        batch_sizes=(64,),
        seconds=2,
        backends=backend,
        progress=False,
        on_nonfinite="propagate",
    )
    batch = batch_of(64, 3)
    clean = fast(*batch)
    odd = [batch[0].clone(), *batch[1:]]
    rows = [5, 20, 63]
    odd[0][rows] = torch.tensor([[torch.nan], [torch.inf], [-torch.inf]])
    with torch.no_grad():
        expected = ranker(*odd)
    answer = fast(*odd)
    assert torch.equal(answer.isfinite(), expected.isfinite())
    others = torch.ones(64, dtype=torch.bool).index_fill(0, torch.tensor(rows), False)
    assert torch.equal(answer[others], clean[others])


def test_the_rows_of_what_is_not_finite_are_named(fast: CompressedModel) -> None:
    """T2: by default the first of them is refused by feature and row."""
    for row, number in ((5, torch.nan), (20, torch.inf), (63, -torch.inf)):
        batch = list(batch_of(64, 3))
        batch[0][row, 2] = number
        with pytest.raises(InputError, match=f"'dense', row {row}, position .*: got ") as caught:
            fast(*batch)
        assert caught.value.row == row


def test_a_row_does_not_see_its_neighbours(fast: CompressedModel) -> None:
    """T3: 1,000 rows alone, in 20 partitions, permuted, and beside 1e3 and 1e30: at most 1e-6 apart."""
    dense, *ids = batch_of(1000, 5)
    whole = fast(dense, *ids)
    scale = max(1.0, float(whole.abs().max()))
    rng = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(20):
        order = torch.randperm(1000, generator=rng)
        sizes = torch.randint(1, 513, (200,), generator=rng).cumsum(0)
        for part in torch.tensor_split(order, sizes[sizes < 1000]):
            worst = max(worst, float((fast(dense[part], *(x[part] for x in ids)) - whole[part]).abs().max()))
    for row in range(1000):
        alone = fast(dense[row : row + 1], *(x[row : row + 1] for x in ids))
        worst = max(worst, float((alone - whole[row]).abs().max()))
    for outlier in (1e3, 1e30):
        beside = torch.full_like(dense, outlier)
        beside[::100] = dense[::100]
        worst = max(worst, float((fast(beside, *ids) - whole)[::100].abs().max()))
    assert worst <= 1e-6 * scale


@pytest.mark.filterwarnings("ignore")
def test_scales_of_the_whole_batch_are_rejected(ranker: Ranker, fast: CompressedModel) -> None:
    """T3 bites: linears that torch quantises dynamically take their scale from all rows."""
    dynamic = torch.ao.quantization.quantize_dynamic(ranker, {nn.Linear}, torch.qint8)

    def session(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (dynamic(*tensors),)

    layout = fast.original.layout
    told = neighbours(session, layout.features, list(batch_of(33)), layout.output_axes)
    assert isinstance(told, str) and "depends on its neighbours" in told


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 31, 32, 33, 127, 1024, 8192])
def test_a_batch_of_one_row_was_enough(rows: int, fast: CompressedModel, ranker: Ranker) -> None:
    """T5: twelve numbers of rows, compressed with one."""
    batch = batch_of(rows, 9)
    with torch.no_grad():
        expected = ranker(*batch)
    answer = fast(*batch)
    assert answer.shape == expected.shape == (rows,)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
