"""Reports of every kind, for the tests that write, read and render them."""

from __future__ import annotations

from dataclasses import replace

from fastrec.losses import of_segments
from fastrec.measure import Fidelity, Latency, Loss, Machine, Ratio, SegmentLoss
from fastrec.recipe import Recipe
from fastrec.report import Memory, Report, SizeResult, Step, Tables, Trial
from fastrec.techniques import Change, Fuse, Skip

MACHINE = Machine(
    cpu="AMD EPYC 9354", flags=("avx2", "avx512f", "avx512_vnni"), cores=64, affinity=2, load=0.42, threads=1,
    libraries={"torch": "2.13.0", "numpy": "2.4.6", "onnxruntime": "1.32.0"}, python="3.11.7",
    platform="Linux 6.8.0 x86_64", date="2026-01-31T12:00:00+00:00",
)  # fmt: skip

CHANGES = (
    *(Change("stack lookups", f"model.emb.{i}", "26 tables of 16 columns", 6_400_000) for i in range(26)),
    Change("split first layer", "model.mlp.0", "linear(cat) = sum of linears", 106_496),
    Change("fold batch norm", "model.mlp.1", "scale and shift into mlp.0", 0),
)

SKIPS = (
    Skip("stack lookups", "model.hashed", "the table is read in two places"),
    Skip("fold batch norm", "model.dice.bn", "a non-linear op stands between"),
    Skip("fold batch norm", "model.dice2.bn", "a non-linear op stands between"),
)


def latency(p50: float, n: int = 400) -> Latency:
    return Latency(n, p50, 1.2 * p50, 1.6 * p50 if n >= 299 else None, 0.98 * p50, 1.03 * p50)


def size(rows: int, before: float, after: float, session: str = "onnxruntime", n: int = 400) -> SizeResult:
    value = before / after
    ratio = Ratio(value, 0.99 * value, 1.01 * value, n)
    return SizeResult(rows, latency(before, n), latency(after, n), ratio, session)


def improved() -> Report:
    """A run with faster, equal and slower batch sizes, skips, and trials that lost or failed."""
    return Report(
        tables=Tables(900, 1000),
        status="improved",
        sizes=(
            size(1, 312e-6, 313e-6, "eager"),
            size(32, 512e-6, 171e-6),
            size(100, 1.13e-3, 402e-6),
            size(500, 3.12e-3, 1.41e-3),
            size(1000, 6.5e-3, 6.9e-3, "torch.compile", n=120),
        ),
        steps=(Step("fuse", True, CHANGES, 1.24), Step("prune", False, (), 0.01)),
        skipped=SKIPS,
        trials=(
            Trial(1, "eager", 313e-6, 0.997, "chosen"),
            Trial(1, "onnxruntime", 402e-6, 0.776, "slower than the original"),
            Trial(1, "openvino", None, None, "EmbeddingBag with offsets is not supported"),
            Trial(100, "onnxruntime", 402e-6, 2.81, "chosen"),
        ),
        fidelity=Fidelity(1000, 5.96e-8, 4.1e-7, 0, True, False, True, 1.0, 1.0),
        memory=Memory(166_400_000, 166_506_496, 12_345_678),
        machine=MACHINE,
        recipe=Recipe((Fuse(),)),
        seconds=23.4,
        notes=("one thread",),
    )


def unchanged() -> Report:
    """A run in which nothing was worth doing."""
    return replace(
        improved(), status="unchanged", sizes=(), steps=(Step("fuse", True, (), 0.2),), skipped=(), trials=(),
        fidelity=None, memory=Memory(1000, 1000, 0), notes=(),
    )  # fmt: skip


def segmented(count: int = 11, **allowed: float) -> Report:
    """A run that loses most in its last segment but one, and has few rows in the last; `allowed` in each segment by metric."""
    losses = [
        SegmentLoss(
            "popularity", str(i), "auc", 900, Loss("auc", 0.8, 0.8 - i * 1e-4, i * 1e-4, 2e-4, 900, 400)
        )
        for i in range(1, count)
    ]
    few = SegmentLoss("popularity", "unseen", "auc", 12, Loss("auc", 0.8, 0.5, 0.3, 0.1, 12, 4))
    return replace(improved(), segments=of_segments([*losses, few], allowed))
