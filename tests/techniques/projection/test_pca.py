"""ProjectPCA: what it cuts, what it leaves and why, and the settings around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, ProjectPCA, QuantizeTables
from fastrec.techniques.projection.pca import LINEARS, TABLES
from tests.checks import assert_near

ALL = ProjectPCA(energy=1.0, least_bytes=0, linears=False)


def low_rank(rows: int, width: int, rank: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=rng) @ torch.randn(rank, width, generator=rng)


class DeepFM(nn.Module):
    """ids (N, 3) -> scores (N,), with tables whose rows lie in three of their twelve dimensions."""

    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(30, 12) for _ in range(3))
        self.first = nn.ModuleList(nn.Embedding(30, 1) for _ in range(3))
        self.tower = nn.Sequential(
            nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
        )
        held = low_rank(90, 12, 3, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
            for i, table in enumerate(self.tables):
                table.weight.copy_(held[30 * i : 30 * i + 30] if shared else low_rank(30, 12, 3, i) + 1)  # type: ignore[operator]
        self.shared = shared

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        deep = self.tower(torch.cat(rows, 1))
        if not self.shared:
            return deep.squeeze(1)
        fields = torch.stack(rows, 1)
        pairs = 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1)).sum(1, keepdim=True)
        first = torch.cat([weight(ids[:, i]) for i, weight in enumerate(self.first)], 1).sum(1, keepdim=True)
        return torch.sigmoid(first + pairs + deep).squeeze(1)


def ids(rows: int, seed: int = 1) -> Tensor:
    return torch.randint(30, (rows, 3), generator=torch.Generator().manual_seed(seed))


def read(model: nn.Module, *batch: Tensor, calibration: tuple[Tensor, ...] = ()) -> Program:
    program = capture(Program.read(model.eval(), batch))
    return replace(program, calibration=(calibration,) if calibration else ())


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.site: skip.reason for skip in applied.skipped}


@pytest.mark.parametrize("shared", [True, False])
def test_columns_that_are_not_there_are_cut_and_no_call_is_added(shared: bool) -> None:
    model = DeepFM(shared)
    program = read(model, ids(4), calibration=(ids(300),))
    applied = ALL.apply(program)
    assert isinstance(applied.model, fx.GraphModule) and isinstance(program.model, fx.GraphModule)
    # Inner products tie the tables to one basis; under linear maps alone each has its own, less its mean.
    assert len(applied.changes) == (1 if shared else 3)
    for change in applied.changes:
        assert change.rule == TABLES and "12 -> 4: 100.00% of the energy" in change.detail
    calls = [
        sum(node.op == "call_function" for node in made.graph.nodes)
        for made in (program.model, applied.model)
    ]
    assert calls[0] == calls[1]
    widths = {tuple(t.shape) for name, t in applied.model.named_buffers() if "projected" in name}
    assert widths == {(30, 4), (40, 12)}
    fused = Fuse().apply(program.with_model(applied.model))
    whole = Fuse().apply(program)
    with torch.no_grad():
        for made in (applied.model, fused.model):
            assert torch.allclose(made(ids(50, 2))[0], model(ids(50, 2)), atol=2e-5)
        # Rows that calibration did not see as well.
        assert torch.allclose(applied.model(ids(0))[0], model(ids(0)))
    assert ALL.apply(program.with_model(applied.model)).changes == ()
    # After fusion an embedding and its first-order weight lie side by side: the order is named.
    after = ALL.apply(program.with_model(whole.model))
    if shared:
        assert after.changes == () and any("before Fuse" in reason for reason in reasons(after).values())


def test_the_traffic_says_which_columns_count() -> None:
    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(40, 8), nn.Embedding(40, 8)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.users(user) * self.items(item)).sum(-1)

    model = Dot()
    with torch.no_grad():
        model.users.weight[:20] = low_rank(20, 8, 3, 0)
        model.items.weight[:20] = low_rank(20, 8, 3, 0).flip(0)
    popular = torch.arange(20).repeat(2)
    program = read(model, popular[:4], popular[:4], calibration=(popular, popular.flip(0)))
    applied = ALL.apply(program)
    assert "width 8 -> 4" in applied.changes[0].detail
    with torch.no_grad():
        assert torch.allclose(applied.model(popular, popular)[0], model(popular, popular), atol=1e-4)
    # The same tables under even traffic use all of their columns.
    even = torch.arange(40)
    assert ALL.apply(replace(program, calibration=((even, even),))).changes == ()
    with pytest.raises(TechniqueError, match="row 40 of"):
        ALL.apply(replace(program, calibration=((even + 1, even),)))


def test_a_tower_beside_a_table_is_turned_where_that_is_worth_it() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(2))
            self.tower = nn.Linear(5, 8)

        def forward(self, x: Tensor, item: Tensor, brand: Tensor) -> Tensor:
            rows = self.tables[0](item) + self.tables[1](brand)
            return torch.matmul(rows.unsqueeze(1), torch.relu(self.tower(x)).unsqueeze(-1)).flatten()

    model, one = Tower(), torch.arange(20)
    with torch.no_grad():
        for table in model.tables:
            table.weight.copy_(low_rank(20, 8, 3, 0))  # type: ignore[operator]
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    program = read(model, x[:3], one[:3], one[:3], calibration=(x, one, one))
    # What the tower gives is part of the traffic: it uses more columns than the tables do.
    assert ALL.apply(program).changes == ()
    applied = replace(ALL, rank=4).apply(program)
    assert "1 values beside them turned" in applied.changes[0].detail
    assert applied.model(x[:2], one[:2], one[:2])[0].shape == (2,)


def test_what_stays_has_its_reason() -> None:
    model = DeepFM()
    program = read(model, ids(4))
    name = "model.tables.0.weight"
    for technique, word in (
        (replace(ALL, rank=12), "rank 12 is not less than its width 12"),
        (replace(ALL, rank=64), "rank 64"),
        (replace(ALL, least_bytes=1 << 20), "bytes are less than"),
    ):
        applied = technique.apply(program)
        assert applied.model is program.model and word in reasons(applied)[name]
    assert (
        "already"
        in reasons(ALL.apply(program.with_model(ALL.apply(program).model)))[
            f"{name}_projected".replace(".", "_")
        ]
    )
    assert ALL.apply(replace(program, calibration=())).changes
    assert replace(ALL, without=(name,)).apply(program).changes == ()
    with pytest.raises(InputError, match="no group of tables"):
        replace(ALL, only=("nothing",)).apply(program)
    with pytest.raises(TechniqueError, match="capture"):
        ALL.apply(Program.read(model, ids(4)))


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"rank": True}, {"energy": 0}, {"energy": 1.1}, {"energy": "much"}, {"linears": 1}, {"least": -1},
     {"least_bytes": 0.5}, {"only": "name"}, {"without": ("",)}],
)  # fmt: skip
def test_settings_of_another_kind_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ProjectPCA(**settings)  # type: ignore[arg-type]


class Vectors(nn.Module):
    """x (N, 512), as an encoder of pictures gives it -> scores (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x).squeeze(-1)


def test_maps_of_inputs_of_few_dimensions_are_two() -> None:
    x = low_rank(600, 512, 10, 0) + 1
    model = Vectors()
    program = read(model, x[:4], calibration=(x[:500],))
    technique = ProjectPCA(energy=1.0)
    applied = technique.apply(program)
    assert [(change.rule, change.site) for change in applied.changes] == [(LINEARS, "linear")]
    assert "(128, 512) through 16 columns, 100.00%" in applied.changes[0].detail
    assert "under 65,536" in reasons(applied)["linear_1"]
    with torch.no_grad():
        right = model(x[500:])
        assert torch.allclose(applied.model(x[500:])[0], right, atol=1e-4)
        # Fusion does not multiply the two together again.
        fused = Fuse().apply(program.with_model(applied.model)).model
        assert sum("_down" in name or "_up" in name for name, _ in fused.named_buffers()) == 2
        assert torch.allclose(fused(x[500:])[0], right, atol=1e-4)
    thin = technique.apply(replace(program, calibration=((x[:20],),)))
    assert thin.changes == () and "rows, for" in reasons(thin)["linear"]
    noise = torch.randn(600, 512, generator=torch.Generator().manual_seed(1))
    assert (
        "products in place of"
        in reasons(technique.apply(replace(program, calibration=((noise,),))))["linear"]
    )
    with pytest.raises(TechniqueError, match="captured"):
        technique.apply(Program.read(model, x[:4]))


def test_milder_settings_lose_less() -> None:
    model = DeepFM()
    with torch.no_grad():
        for i, table in enumerate(model.tables):
            table.weight.add_(0.3 * low_rank(30, 12, 12, 7 + i))  # type: ignore[operator]
    program = read(model, ids(4), calibration=(ids(300),))
    strong = ProjectPCA(energy=0.6, least_bytes=0, least=0)
    applied = strong.apply(program)
    assert {change.rule for change in applied.changes} == {TABLES, LINEARS}
    assert list(strong.alternatives(applied.changes).values()) == [replace(strong, linears=False)]
    fewer, *more = strong.milder(program, applied.changes)
    assert isinstance(fewer, ProjectPCA) and fewer.without
    assert [round(one.energy, 3) for one in more if isinstance(one, ProjectPCA)] == [0.9, 0.975]
    ranks = replace(strong, rank=4).milder(program, applied.changes[:1])
    assert [one.rank for one in ranks if isinstance(one, ProjectPCA)] == [8, 12]
    with torch.no_grad():
        right = [model(ids(200, 3))]
        off = [float((s.apply(program).model(ids(200, 3))[0] - right[0]).norm()) for s in (strong, *more)]
    assert off == sorted(off, reverse=True)


def test_narrower_tables_are_still_for_fewer_bits() -> None:
    program = read(DeepFM(), ids(4), calibration=(ids(300),))
    projected = program.with_model(ALL.apply(program).model)
    applied = QuantizeTables(least_bytes=0, bits=16).apply(projected)
    assert any("(30, 4)" in change.detail for change in applied.changes)
    with torch.no_grad():
        assert_near(list(applied.model(ids(40))), list(program.model(ids(40))), 0.01)


def test_a_group_goes_by_any_of_its_tables() -> None:
    program = read(DeepFM(), ids(4), calibration=(ids(300),))
    second = "model.tables.1.weight"
    assert replace(ALL, only=(second,)).apply(program).changes == ALL.apply(program).changes
    assert replace(ALL, without=(second,)).apply(program).changes == ()
