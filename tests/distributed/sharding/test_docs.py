"""Every text of docs/sharding.md, run, and its tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sharding
from fastrec import CompressedModel
from tests import pages

from .models import batch

ROOT = pages.ROOT
TEXT = (ROOT / "docs" / "sharding.md").read_text("utf-8")


@pytest.mark.cluster
def test_the_texts_run_by_torchrun(
    fast: CompressedModel, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder.parent)
    # Two processes are enough, and tables as small as these.
    plan = pages.code("docs/sharding.md", "plan_shards")
    two = plan.replace("world=4", "world=2").replace("64 << 30", "64 << 20, least_bytes=0")
    exec(compile(two, "docs/sharding.md", "exec"), {"batches": [batch(16, seed) for seed in range(2)]})
    torch.save(batch(16, 5), tmp_path / "batch.pt")
    script = tmp_path / "serve.py"
    serve = pages.code("docs/sharding.md", "init_process_group")
    script.write_text(
        f"import torch\nbatch = torch.load({str(tmp_path / 'batch.pt')!r})\n{serve}"
        f"torch.save(scores, {str(tmp_path)!r} + f'/scores{{dist.get_rank()}}.pt')\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Traffic(calls=1, samples=16") == 2
    assert fast.program is not None
    for rank in range(2):
        scores = torch.load(tmp_path / f"scores{rank}.pt")
        torch.testing.assert_close(scores, fast.program.model(*batch(16, 5))[0], rtol=0, atol=1e-6)


def test_the_page_is_the_committed_results() -> None:
    found = sorted((ROOT / "benchmarks" / "results" / "sharding").glob("*.json"))
    marks = ("sharding", "assumptions", "paper")
    if found:
        assert sharding.with_table(TEXT, sharding.read(found[0])) == TEXT
    else:
        assert all(f"<!-- {mark} -->\n<!-- /{mark} -->" in TEXT for mark in marks)
