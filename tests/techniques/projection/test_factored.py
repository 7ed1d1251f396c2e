"""Tables by fewer columns: exact where rows have no more in them, nearest by traffic where they have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.techniques import FactorTables

ROWS, WIDTH = 40, 8


class Bags(nn.Module):
    """One table, read by rows and in bags."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag.from_pretrained(table, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.table(ids), nn.functional.embedding(ids[:, 0], self.table.weight)], 1)


def factored(
    table: Tensor, share: float, batches: tuple[tuple[Tensor], ...] = ()
) -> tuple[Program, fx.GraphModule, list[str]]:
    program = capture(Program.read(Bags(table).eval(), torch.randint(ROWS, (4, 3))))
    program = replace(program, calibration=batches)
    applied = FactorTables(share, least_bytes=0).apply(program)
    assert isinstance(applied.model, fx.GraphModule)
    return (
        program,
        applied.model,
        [change.detail for change in applied.changes] + [skip.reason for skip in applied.skipped],
    )


def test_rows_with_no_more_in_them_are_kept() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, 3, generator=rng) @ torch.randn(3, WIDTH, generator=rng)
    table[0] = 0
    program, graph, said = factored(table, 0.4)
    assert "by 3 of 8 columns, 100.00% of the energy looked up" in said[0]
    ids = torch.randint(ROWS, (30, 3), generator=rng)
    torch.testing.assert_close(graph(ids)[0], program.model(ids)[0], rtol=1e-4, atol=1e-5)
    assert not graph(torch.zeros(2, 3, dtype=torch.long))[0].any()


def test_what_traffic_looks_up_is_nearest() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(ROWS, WIDTH, generator=rng)
    hot = torch.arange(4)
    seen = ((hot.repeat(250).view(-1, 4)[:, :3].contiguous(),),) * 2
    _, graph, _ = factored(table, 0.5, seen)
    off = (graph(torch.arange(ROWS).view(-1, 1).expand(-1, 3))[0][:, WIDTH:] - table).norm(dim=1)
    assert off[:3].max() < 0.25 * off[4:].mean()


def test_tables_with_no_column_to_spare_stay() -> None:
    for table, share, reason in (
        (torch.randn(ROWS, 1), 0.5, "1 of its 1 columns"),
        (torch.full((ROWS, WIDTH), torch.nan), 0.5, "NaN"),
        (torch.randn(ROWS, WIDTH), 0.9, "7 of its 8 columns and a matrix take no less"),
    ):
        program, graph, said = factored(table, share)
        assert graph is program.model and reason in said[0]


@pytest.mark.parametrize("wrong", [0, 1, -0.5, True, "half"])
def test_wrong_settings_are_named(wrong: object) -> None:
    with pytest.raises(InputError, match=r"FactorTables\(share=...\) takes a share above 0 to below 1"):
        FactorTables(share=wrong)  # type: ignore[arg-type]
