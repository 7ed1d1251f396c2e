"""The same seed, the same bytes: in other processes, with other hashes, with more threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MADE = """
import hashlib, json, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
from fastrec import compress, pipeline
from fastrec.backends import Eager, OnnxRuntime
from fastrec.techniques import Fuse, PruneNeurons, QuantizeLinears, QuantizeTables
from tests.search.test_find import Ranker, rows
pipeline.share = lambda *_: 0.02
pipeline.worth_it = lambda result: True
pipeline.preferred = lambda trials, *first: sorted(one.session for one in trials)[-1]
torch.manual_seed(0)
fast = compress(
    Ranker().eval(), rows(32, 0), calibration=[rows(256, seed) for seed in range(1, 5)],
    recipe=[PruneNeurons(0.5), Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears(least=0)],
    backends=[Eager(), OnnxRuntime()], batch_sizes=(1, 16), progress=False,
)
assert not fast.exact
fast.save(sys.argv[1])
files = {path.relative_to(sys.argv[1]).as_posix(): path.read_bytes() for path in Path(sys.argv[1]).rglob("*") if path.is_file()}
manifest = json.loads(files.pop("manifest.json"))
# What was measured differs from run to run, and so do the report and the card that tell it.
told = {"report.json", "README.md"}
manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name not in told}
for name in ("created", "machine", "headline", "sha256"):
    del manifest[name]
print(json.dumps({
    "files": {name: hashlib.sha256(held).hexdigest() for name, held in files.items() if name not in told},
    "manifest": manifest, "answers": fast(*rows(64, 9)).tolist(),
}))
"""


def made(folder: Path, threads: int, seed: str) -> dict[str, dict[str, object]]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MADE, str(folder), str(threads)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found: dict[str, dict[str, object]] = json.loads(ended.stdout)
    return found


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second, third = pool.map(
            lambda how: made(tmp_path / how[1], how[0], how[1]), [(1, "1"), (1, "31"), (2, "7")]
        )
    assert len(first["files"]) >= 3
    assert first == second
    # More threads add up in another order.
    assert third["files"].keys() == first["files"].keys()
    assert third["answers"] == pytest.approx(first["answers"], abs=1e-6)
