"""One compressed model, and the artifact it was saved as, for all tests of a file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, Fuse, compress, pipeline
from fastrec.artifact import Payload, manifest, payload
from fastrec.backends import OnnxRuntime


class Ranker(nn.Module):
    """A user, items and a price: tables, a tower and an answer for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(90, 8)
        self.tower = nn.Sequential(nn.Linear(17, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.users(user), self.items(item), price[:, None]], 1)
        return self.tower(x).squeeze(1)


def ranker() -> Ranker:
    """The same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Ranker().eval()


def batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch of one user."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(50, (1,), generator=rng).expand(rows).contiguous(),
        "item": torch.randint(90, (rows,), generator=rng),
        "price": torch.randn(rows, generator=rng),
    }


@dataclass(frozen=True)
class Saved:
    """A compressed model, what it is written from, and its artifact, which is not written to."""

    model: Ranker
    fast: CompressedModel
    made: Payload
    folder: Path

    def copy(self, to: Path) -> Path:
        """A copy of the artifact to be spoilt."""
        return Path(shutil.copytree(self.folder, to / "artifact"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch with one thread, so that processes may be forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A small ranker in ONNX Runtime, one user for each call."""
    model, threads = ranker(), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "share", lambda *_: 0.05)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        # One form serves, whichever a clock would prefer.
        patch.setattr(
            pipeline, "preferred", lambda trials, *first: min((one.session for one in trials), key=len)
        )
        fast = compress(
            model,
            batch(20),
            request_features=["user"],
            recipe=Fuse(),
            backends=[OnnxRuntime()],
            batch_sizes=(1, 16),
            seconds=2,
            progress=False,
        )
    folder = tmp_path_factory.mktemp("saved") / "artifact"
    fast.save(folder)
    made = payload(fast.contents(), fast.sessions)
    torch.set_num_threads(threads)
    return Saved(model, fast, made, folder)


def resealed(folder: Path, change: Callable[[dict], None] | None = None, **files: bytes) -> None:
    """Files put into an artifact, and its manifest changed, by one who knows how digests are made."""
    path = folder / "manifest.json"
    data = json.loads(path.read_bytes())
    for name, held in files.items():
        (folder / name).write_bytes(held)
    for name in data["files"]:
        if (folder / name).is_file():
            held = (folder / name).read_bytes()
            data["files"][name] = {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
    if change is not None:
        change(data)
    created = data.pop("created")
    data.pop("sha256")
    data["sha256"] = manifest._digest(data)
    path.write_bytes(manifest._canonical(data | {"created": created}))
