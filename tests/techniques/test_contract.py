"""What every technique keeps, over the zoo and its ladder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import fx

from fastrec.plain import from_plain, to_plain
from fastrec.techniques import (
    TECHNIQUES,
    ComposeTables,
    DropBlocks,
    FactorTables,
    FitTables,
    ProductQuantizeTables,
    ProjectPCA,
    PruneFields,
    PruneHeads,
    PruneNeurons,
    PruneRows,
    RelateTables,
    RotateTowers,
    ShareEmbeddings,
    Technique,
    TruncateHistory,
)
from tests.checks import assert_as_good, assert_near, assert_unchanged, call, double, flat, snapshot
from tests.zoo import ZOO, Entry
from tests.zoo.programs import captured as captured_of
from tests.zoo.programs import program_of

# What the zoo's small tables and short histories leave of the ladders; forms are chosen for a few tables alone, which takes time.
OWN: dict[type[Technique], tuple[Technique, ...]] = {
    ComposeTables: (ComposeTables(1 / 2, least_bytes=0),),
    FactorTables: (FactorTables(0.9, least_bytes=0),),
    FitTables: (FitTables(bytes=0, least_bytes=2000),),
    ProductQuantizeTables: (ProductQuantizeTables(1, codes=16, least_bytes=0),),
    ProjectPCA: (ProjectPCA(rank=5, energy=0.9, least=0, least_bytes=0),),
    PruneFields: (PruneFields(0.6), PruneFields(0.6, by="permutation")),
    PruneNeurons: (PruneNeurons(0.5, step=2),),
    PruneRows: (PruneRows(25, least_bytes=0),),
    RelateTables: (RelateTables(least_bytes=0), RelateTables(worst=0.3, least_bytes=0)),
    RotateTowers: (RotateTowers(0.75, least=0),),
    ShareEmbeddings: (ShareEmbeddings(least_bytes=0), ShareEmbeddings(keep=0.8, least_bytes=0)),
    TruncateHistory: (TruncateHistory(recent=8, segments=2),),
}
LADDER = [
    replace(rung, least_bytes=0) if kind not in OWN and hasattr(rung, "least_bytes") else rung
    for kind in TECHNIQUES.values()
    for rung in OWN.get(kind, kind.ladder())
]
# How far off the answers of an approximate technique may be, calibrated on other rows of the same kind, and the rows it
# takes to say: by the technique, or by the bits that are left. The zoo's tables were never trained: their rows are noise, of
# which another row or a sum of some keeps little, and few of their columns can go.
NEAR, MANY = {16: 0.002, 8: 0.1, 4: 0.5}, 32
OF_NOISE = {
    ComposeTables: 1.2,
    DropBlocks: 0.6,
    FactorTables: 0.6,
    FitTables: 1.2,
    ProductQuantizeTables: 0.25,
    ProjectPCA: 0.5,
    PruneFields: 1.2,
    PruneNeurons: 0.6,
    PruneRows: 1.2,
    PruneHeads: 0.6,
    RelateTables: 0.6,
    RotateTowers: 0.6,
    ShareEmbeddings: 0.6,
}
PAIRS = [(t, entry) for entry in ZOO for t in LADDER if entry.capturable or t.modules]


def near(technique: Technique, rows: int) -> float:
    """How far off the answers for so many rows may be; for one or two their spread says little."""
    far = OF_NOISE.get(type(technique))
    if rows < MANY:
        return 1000 * far if far else 10.0
    return far or NEAR[getattr(technique, "bits", 8)]


@pytest.mark.parametrize(
    ("technique", "entry"), PAIRS, ids=lambda one: one.name if isinstance(one, Entry) else str(one)
)
def test_technique(technique: Technique, entry: Entry) -> None:
    whole = program_of(entry)
    captured = captured_of(entry) if entry.capturable else whole
    program = captured if technique.level == "graph" else whole
    if not technique.exact:
        size = max(set(entry.sizes) - set(captured.layout.exempt))
        batch = entry.batch(size, torch.Generator().manual_seed(7))
        program = replace(program, calibration=(tuple(whole.flat(batch)) if entry.capturable else batch,))
    before, code = snapshot(program.model), getattr(program.model, "code", "")
    applied = technique.apply(program)
    again = technique.apply(program)
    # The program it was given is as it was, and the result is the same each time.
    assert_unchanged(program.model, before)
    assert getattr(program.model, "code", "") == code
    assert applied.changes == again.changes
    assert (applied.model is program.model) == (not applied.changes)
    assert all(skip.reason for skip in applied.skipped)
    if not applied.changes:
        return
    for size in entry.sizes:
        batch = entry.batch(size, torch.Generator().manual_seed(50 + size))
        if size in captured.layout.exempt:
            continue
        original = flat(call(getattr(whole.model, entry.entry), batch))
        tensors = whole.flat(batch)
        with torch.no_grad():
            got = (
                list(applied.model(*tensors))
                if technique.level == "graph" and entry.capturable
                else program.with_model(applied.model).run(tensors)[0]
            )
        if technique.exact:
            assert_as_good(got, original, double(whole.model, entry.entry, batch))
        else:
            assert_near(got, original, near(technique, size))
    if isinstance(applied.model, fx.GraphModule) or technique.modules:
        # Applied to its own result it finds nothing more.
        assert technique.apply(program.with_model(applied.model)).changes == ()


@pytest.mark.parametrize(
    "technique", [*LADDER, *(rung for kind in TECHNIQUES.values() for rung in kind.ladder())], ids=str
)
def test_settings_survive_json(technique: Technique) -> None:
    data = json.loads(json.dumps(to_plain(technique, "settings")))
    assert from_plain(type(technique), data, "settings") == technique
