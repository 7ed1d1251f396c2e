"""Small recommenders as captured programs, and batches for them: what the backend tests run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

from fastrec.backends import Backend, Eager, Inductor, OnnxRuntime, OpenVino, Session
from fastrec.backends.onnx_export import export_onnx
from fastrec.backends.onnxruntime import session_options
from fastrec.backends.packed_int8 import packed_of
from fastrec.graph import is_call
from fastrec.inputs import read_layout
from fastrec.ops.linears import INT8_LINEAR
from fastrec.program import Program

ROWS = 40

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A model, how to make a batch of `rows` rows for it, and how many lookups its graph has."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], Batch]
    lookups: int


class _Flat(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        answer = self.model(*tensors)
        return answer if isinstance(answer, tuple) else (answer,)


def captured(model: nn.Module, batch: Batch) -> Program:
    """The captured program of a model called with flat tensors whose axis 0 counts rows."""
    sizes = tuple({0: Dim.AUTO} for _ in batch)
    with torch.no_grad():
        exported = torch.export.export(_Flat(model.eval()), batch, dynamic_shapes=(sizes,), strict=False)
    gm = exported.module(check_guards=False)
    gm.graph.set_codegen(fx.graph.CodeGen())
    output = gm.graph.output_node()
    output.args = (tuple(output.args[0]),)
    gm = fx.GraphModule(gm, gm.graph)
    layout, _ = read_layout(gm.forward, batch)
    return Program(gm, batch, layout)


def graph_of(program: Program) -> fx.GraphModule:
    """The graph of a captured program."""
    assert isinstance(program.model, fx.GraphModule)
    return program.model


def executed(program: Program, folder: Path, *batch: Tensor) -> tuple[onnx.ModelProto, Counter[str]]:
    """The ONNX model as a session made it its own, and how often each operator ran in one call."""
    model = export_onnx(graph_of(program), "onnxruntime", outside=True)
    options = session_options()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(t.numpy()) for name, t in model.constants.items()
    }
    options.add_external_initializers(list(values), list(values.values()))
    session = onnxruntime.InferenceSession(model.proto, options, providers=["CPUExecutionProvider"])
    session.run(None, {name: t.numpy() for name, t in zip(model.inputs, batch, strict=True)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = Counter(
        e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    )
    return onnx.load(options.optimized_model_filepath), ran


def program_of(case: Case, seed: int = 0) -> tuple[Program, nn.Module]:
    """A case's captured program, and the model it was captured from with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = case.build().eval()
    return captured(model, case.batch(5, torch.Generator().manual_seed(seed))), model


def assert_no_row_sees_another(session: Session, x: Batch, times: int = 20) -> None:
    """Each row's answer is finite, and the same to the last bit alone and in batches of any size and order."""
    together, count = session(*x), len(x[0])
    assert all(bool(tensor.isfinite().all()) for tensor in together)
    batches = [*torch.arange(count).split(1)]
    rng = torch.Generator().manual_seed(5)
    for _ in range(times):
        order = torch.randperm(count, generator=rng)
        cuts = torch.randint(1, count // 5, (12,), generator=rng).cumsum(0).clamp(max=count).tolist()
        batches += [piece for piece in order.tensor_split(cuts) if len(piece)]
    for batch in batches:
        for alone, all_ in zip(session(*(t[batch] for t in x)), together, strict=True):
            assert torch.equal(alone, all_[batch])


class Dense(nn.Module):
    """A tower with no lookup at all."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(7, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.tower(x))


class Factorised(nn.Module):
    """Lookups per field, a factorisation machine, a first-order part, and a tower with BatchNorm."""

    def __init__(self, fields: int = 4) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 8) for _ in range(fields))
        self.first = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(fields))
        self.tower = nn.Sequential(
            nn.Linear(fields * 8 + 3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
        )
        nn.init.uniform_(self.tower[1].running_var, 0.5, 2.0)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        first = torch.cat([table(ids[:, i]) for i, table in enumerate(self.first)], 1).sum(1, keepdim=True)
        cross = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        deep = self.tower(torch.cat([rows.flatten(1), x], 1))
        return (first + cross + deep).squeeze(1)


class Bags(nn.Module):
    """Pooled bags of several ids with padding, a bag of one id, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.EmbeddingBag(ROWS, 8, mode="sum", padding_idx=0)
        self.one = nn.EmbeddingBag(ROWS, 8, mode="mean")
        self.head = nn.Linear(16, 2)

    def forward(self, bag: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.many(bag), self.one(single.unsqueeze(1))], 1)
        return self.head(joined), joined.norm(dim=1)


class History(nn.Module):
    """Attention of a candidate over a padded history, with shared tables and a mask from the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 8, padding_idx=0)
        self.unit = nn.Sequential(nn.Linear(32, 16), nn.PReLU(), nn.Linear(16, 1))
        self.head = nn.Linear(16, 1)

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        keys, query = self.items(history), self.items(candidate)
        query_each = query.unsqueeze(1).expand(-1, history.shape[1], -1)
        scores = self.unit(torch.cat([query_each, keys, query_each - keys, query_each * keys], -1)).squeeze(
            -1
        )
        scores = scores.masked_fill(history == 0, -1e9)
        pooled = (scores.softmax(-1).unsqueeze(-1) * keys).sum(1)
        return self.head(torch.cat([pooled, query], -1))


class Packed(nn.Module):
    """Ids and numbers in one float matrix, pairwise products, and ids shifted by offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3 * ROWS, 8)
        self.register_buffer("offsets", torch.tensor([0, ROWS, 2 * ROWS]))
        self.register_buffer("pairs", torch.triu_indices(3, 3, 1))
        self.head = nn.Linear(3 + 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding(x[:, :3].long() + self.offsets, self.table.weight)
        products = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.head(torch.cat([products, x[:, 3:]], 1))


def _ids(rows: int, *shape: int, rng: torch.Generator) -> Tensor:
    return torch.randint(0, ROWS, (rows, *shape), generator=rng)


CASES = (
    Case("dense", Dense, lambda n, rng: (torch.randn(n, 7, generator=rng),), 0),
    Case("factorised", Factorised, lambda n, rng: (_ids(n, 4, rng=rng), torch.randn(n, 3, generator=rng)), 8),
    Case("bags", Bags, lambda n, rng: (_ids(n, 6, rng=rng), _ids(n, rng=rng)), 2),
    Case("history", History, lambda n, rng: (_ids(n, 9, rng=rng), _ids(n, rng=rng)), 2),
    Case(
        "packed",
        Packed,
        lambda n, rng: (torch.cat([_ids(n, 3, rng=rng).float(), torch.randn(n, 2, generator=rng)], 1),),
        1,
    ),
)

SETTINGS: tuple[Backend, ...] = (
    Eager(),
    OnnxRuntime(lookups="torch"),
    OnnxRuntime(lookups="session"),
    OpenVino(lookups="torch"),
    OpenVino(lookups="session"),
    Inductor(),
    Inductor(freeze=True),
)


def skip_unless_packed(gm: fx.GraphModule) -> None:
    """Skips on a processor whose kernel does not stand for every 8-bit map of the graph: of some shapes it gives other bits."""
    for node in gm.graph.nodes:
        if is_call(node, INT8_LINEAR) and isinstance(found := packed_of(gm, node), str):
            pytest.skip(found)
