"""Models as they were trained, and how somebody would score batches of a table with one: what `benchmarks.workers` compares with.

Worker processes find these here, by name: what stands in the module that is run is nowhere else.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .pages import ROOT

COLUMNS = ("ids", "genres", "liked")
ROWS, WIDTH = 1 << 23, 16
SIZES = Path("sizes.txt")


class Lookup(nn.Module):
    """One large table and a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.tower(self.table(ids)).squeeze(1)


def examples() -> Any:
    """The module of the example."""
    sys.path.insert(0, str(ROOT / "examples"))
    import movietweetings

    return movietweetings


def uncompressed(folder: str) -> nn.Module:
    """The model as it was trained, in evaluation mode."""
    sizes = Path(folder, SIZES)
    if sizes.exists():
        pairs = (line.split() for line in sizes.read_text().splitlines())
        model: nn.Module = examples().Ranker({name: int(size) for name, size in pairs})
    else:
        model = Lookup()
    model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return model.eval()


@functools.cache
def opened(folder: str) -> nn.Module:
    """The same, once for each process, however often what scores is pickled."""
    torch.set_num_threads(1)
    return uncompressed(folder)


class Original:
    """Batches scored by the uncompressed model, as somebody would write it: columns to tensors, a call, a column of scores."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, batch: Any) -> Any:
        model = opened(self.folder)
        given = [torch.tensor(matrix(batch, name)) for name in COLUMNS]
        with torch.inference_mode():
            scores = model(*given).numpy()
        if isinstance(batch, pd.DataFrame):
            return batch[["row"]].assign(score=scores)
        return type(batch).from_arrays([batch.column("row"), pa.array(scores)], names=["row", "score"])


def matrix(batch: Any, name: str) -> np.ndarray[Any, Any]:
    """A column of lists of one length as an array (n, k)."""
    if isinstance(batch, pd.DataFrame):
        return np.stack(list(batch[name]))
    values = batch.column(name)
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(whole.flatten()).reshape(batch.num_rows, -1)
