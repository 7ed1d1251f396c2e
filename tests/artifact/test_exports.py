"""Exports: the file answers as the model does, says what it takes, and a repository of Triton fits it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureError, CompressedModel, InputError, Recipe, load
from fastrec.capture import capture
from fastrec.declared import Declared, read_program
from fastrec.errors import ArtifactError, BackendError
from fastrec.exports import Exported, checking, triton
from fastrec.exports.graph import Port
from fastrec.exports.triton import config
from fastrec.guards import read_guard
from fastrec.request import Once, ask
from fastrec.techniques import CastLinears, QuantizeLinears, QuantizeTables, Technique

from .conftest import Saved, batch


def compressed(
    model: nn.Module, example: Any, *recipe: Technique, request: Declared = (), many: Any = None
) -> CompressedModel:
    """A compressed model of which no session was made: what an export reads."""
    program = read_program(model, example, [], request)
    plain = capture(program)
    known = (tuple(program.flat(example if many is None else many)),)
    asked = served = ask(replace(plain, calibration=known, origin=plain.model))
    for technique in recipe:
        served = served.with_model(technique.apply(served).model)
    original = program.with_model(program.draft().eval()).bare()
    made = CompressedModel(original, {}, None, read_guard(asked, "raise"), Once(program.layout.features))
    made.program, made.recipe, made.exact = served.bare(), Recipe(recipe), not recipe
    made.report = None  # which no export reads
    return made


def run(path: Path | str, feed: dict[str, Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


def told(path: Path) -> dict[str, Any]:
    found = {item.key: item.value for item in onnx.load(path).metadata_props}
    return {
        key: value if key in ("fastrec", "int8_weights") else json.loads(value)
        for key, value in found.items()
    }


def asked(rows: int, seed: int) -> dict[str, Tensor]:
    made = batch(rows, seed)
    return {**made, "user": made["user"][:1]}


@pytest.fixture(scope="module")
def exported(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The shared ranker, in one file."""
    return saved.fast.export_onnx(tmp_path_factory.mktemp("exported") / "ranker.onnx")


def test_the_file_answers_as_the_model_does(saved: Saved, exported: Exported) -> None:
    made = exported
    assert made.files == (made.path,) and made.max_abs < 1e-6
    for rows in (1, 7, 300):
        (given,) = run(made.path, asked(rows, rows))
        want = saved.model(**batch(rows, rows)).detach().numpy()
        np.testing.assert_allclose(given, want, rtol=0, atol=1e-6)
    assert [path.name for path in Path(made.path).parent.iterdir()] == ["ranker.onnx"]


def test_it_says_what_it_is_and_takes(saved: Saved, exported: Exported) -> None:
    model, said = onnx.load(exported.path), told(Path(exported.path))
    assert said["exact"] is True and said["request_features"] == ["user"]
    assert Recipe.from_plain(said["recipe"]) == saved.fast.recipe
    assert {
        one["name"]: (one["dtype"], one["shape"], one["low"], one["below"]) for one in said["inputs"]
    } == {
        "user": ("int64", [1], 0, 50),
        "item": ("int64", ["rows"], 0, 90),
        "price": ("float32", ["rows"], None, None),
    }
    assert [item.name for item in model.graph.input] == ["user", "item", "price"]
    assert [item.name for item in model.graph.output] == ["output"]
    assert {opset.domain for opset in model.opset_import} == {""}
    # No file or folder of this machine is named in it.
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert str(Path(__file__).parents[2]).encode() not in Path(exported.path).read_bytes()


def test_a_loaded_model_exports_the_same_with_large_constants_beside(
    saved: Saved, exported: Exported, tmp_path: Path
) -> None:
    made = load(saved.folder).export_onnx(tmp_path / "ranker.onnx", inside=1000)
    assert [Path(file).name for file in made.files] == ["ranker.onnx", "ranker.onnx.data"]
    places = {
        entry.value
        for held in onnx.load(made.path, load_external_data=False).graph.initializer
        for entry in held.external_data
        if entry.key == "location"
    }
    assert places == {"ranker.onnx.data"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in made.files:
        Path(file).rename(moved / Path(file).name)
    (given,), (before,) = (run(path, asked(9, 1)) for path in (moved / "ranker.onnx", exported.path))
    assert np.array_equal(given, before)


class Wide(nn.Module):
    """Rows, a bag of rows and a dense part, answering by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bags = nn.Embedding(64, 16), nn.EmbeddingBag(32, 16, mode="mean", padding_idx=3)
        self.tower = nn.Sequential(nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, output: Tensor, x: Tensor, tags: Tensor, starts: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([self.table(output), self.bags(tags, starts), x], 1)
        return {"scores": self.tower(joined).sigmoid(), "x": x}


def wide(rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    starts = torch.arange(0, 2 * rows, 2)
    starts[rows // 2 :] = starts[rows // 2]  # bags without rows
    return (
        torch.randint(64, (rows,), generator=rng),
        torch.randn(rows, 4, generator=rng),
        torch.randint(32, (2 * rows,), generator=rng),
        starts,
    )


@pytest.mark.parametrize(
    ("recipe", "off", "holds"),
    [
        ((), 1e-6, {"ScatterElements"}),
        (
            (QuantizeTables(least_bytes=0), QuantizeLinears(least=0)),
            2e-3,
            {"MatMulInteger", "QuantizeLinear"},
        ),
        ((QuantizeTables(bits=4, least_bytes=0), CastLinears(least=0)), 4e-3, {"Floor", "Cast"}),
    ],
    ids=["exact", "int8", "int4 and bfloat16"],
)
def test_bags_and_numbers_in_fewer_bits_are_standard_operators(
    recipe: tuple[Technique, ...], off: float, holds: set[str], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fast = compressed(Wide().eval(), wide(12), *recipe, many=wide(400, 1))
    assert fast.program is not None
    made = fast.export_onnx(tmp_path / "wide.onnx")
    model = onnx.load(made.path)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert holds <= {node.op_type for node in model.graph.node}
    assert not {"Loop", "Scan"} & {node.op_type for node in model.graph.node}
    # A feature has the name that an answer would have, and an answer is an input.
    assert [port.name for port in made.outputs] == ["output.scores", "output.x"]
    given = wide(20, 3)
    scores, x = run(made.path, dict(zip((port.name for port in made.inputs), given, strict=True)))
    np.testing.assert_allclose(scores, fast.program.answers(given)[0].numpy(), rtol=0, atol=off)
    np.testing.assert_array_equal(x, given[1].numpy())
    if "MatMulInteger" in holds:
        # Sums of products of codes are exact, however the codes are written.
        here = fast.export_onnx(tmp_path / "here.onnx", everywhere=False)
        assert np.array_equal(
            run(here.path, dict(zip((p.name for p in made.inputs), given, strict=True)))[0], scores
        )


def test_a_name_that_is_taken_gets_another(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, output: Tensor) -> Tensor:
            return output * 2

    made = compressed(Named(), torch.randn(3, 2)).export_onnx(tmp_path / "named.onnx")
    assert [port.name for port in (*made.inputs, *made.outputs)] == ["output", "output_"]
    assert run(made.path, {"output": torch.ones(2, 2)})[0].tolist() == [[2.0, 2.0], [2.0, 2.0]]


class Branching(nn.Module):
    """No graph stands for this one."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_models_that_were_not_captured_are_refused(tmp_path: Path) -> None:
    program = read_program(Branching(), torch.randn(3, 2), [], ())
    fast = CompressedModel(program, {}, None, None, Once(()))
    fast.recipe, fast.report = Recipe(()), None
    with pytest.raises(CaptureError, match="cannot be captured, so there is no graph to export"):
        fast.export_onnx(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_written(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ranker.onnx").write_bytes(b"before")
    session = checking._session

    class Off:
        def __init__(self, inner: Any) -> None:
            self.get_outputs, self._run = inner.get_outputs, inner.run

        def run(self, *given: Any) -> list[np.ndarray]:
            return [array + np.float32(0.01) for array in self._run(*given)]

    monkeypatch.setattr(checking, "_session", lambda *given: Off(session(*given)))
    with pytest.raises(BackendError, match=r"bare.* answers otherwise than the model by up to 0\.01"):
        saved.fast.export_onnx(tmp_path / "ranker.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("export", "error", "match"),
    [
        (lambda fast, at: fast.export_onnx(at / "ranker.bin"), InputError, "ends in .onnx"),
        (lambda fast, at: fast.export_onnx(at / "none" / "x.onnx"), ArtifactError, "could not be written"),
        (lambda fast, at: fast.export_onnx(at / "x.onnx", inside=-1), InputError, "inside takes"),
        (lambda fast, at: fast.export_triton(at, name="../x"), InputError, "name takes"),
        (lambda fast, at: fast.export_triton(at, version=0), InputError, "version takes"),
    ],
)
def test_calls_that_do_not_fit_are_named(
    saved: Saved, tmp_path: Path, export: Callable[..., Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        export(saved.fast, tmp_path)
    assert not list(tmp_path.iterdir())


Message = dict[str, list[Any]]


def parsed(text: str) -> Message:
    """The text format of protobuf, as far as a page of Triton needs it."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"#]+|#[^\n]*', text)
    words = [token for token in tokens if token[0] != "#"]

    def value(token: str) -> Any:
        if token[0] == '"':
            raw = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), token[1:-1].encode())
            return raw.decode()
        return int(token) if re.fullmatch(r"-?\d+", token) else token

    def message() -> Message:
        made: Message = {}
        while words and words[0] != "}":
            key = words.pop(0)
            if words[0] == ":":
                words.pop(0)
                if words[0] == "[":
                    words.pop(0)
                    made.setdefault(key, [])
                    while (token := words.pop(0)) != "]":
                        if token != ",":
                            made[key].append(value(token))
                else:
                    made.setdefault(key, []).append(value(words.pop(0)))
            else:
                assert words.pop(0) == "{"
                made.setdefault(key, []).append(message())
                assert words.pop(0) == "}"
        return made

    found = message()
    assert not words
    return found


def test_a_repository_says_what_its_file_takes(saved: Saved, tmp_path: Path) -> None:
    made = saved.fast.export_triton(tmp_path / "models", name="ranker")
    home = tmp_path / "models" / "ranker"
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*")) == [
        "1",
        "1/model.onnx",
        "config.pbtxt",
    ]
    page = parsed((home / "config.pbtxt").read_text())
    assert page["name"] == ["ranker"] and page["backend"] == ["onnxruntime"]
    # One user for all rows of a call: calls are not joined, and Triton counts no batch.
    assert page["max_batch_size"] == [0] and "dynamic_batching" not in page
    assert [(one["name"][0], one["data_type"][0], one["dims"]) for one in page["input"]] == [
        ("user", "TYPE_INT64", [1]),
        ("item", "TYPE_INT64", [-1]),
        ("price", "TYPE_FP32", [-1]),
    ]
    assert [(one["name"], one["dims"]) for one in page["output"]] == [(["output"], [-1])]
    run(made.path, asked(4, 0))


def test_versions_stand_beside_each_other(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(contents: object, path: Path, **_: object) -> Exported:
        path.write_bytes(b"a model")
        return replace(made, path=str(path), files=(str(path),))

    made = Exported(
        "", (), (Port("x", torch.float32, ("rows", 2)),), (Port("y", torch.bool, ("rows",)),), 0.0, True
    )
    monkeypatch.setattr(triton, "written", written)
    saved.fast.export_triton(tmp_path)
    with pytest.raises(ArtifactError, match="is there already"):
        saved.fast.export_triton(tmp_path)
    saved.fast.export_triton(tmp_path, version=2)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["1", "2", "config.pbtxt"]
    with pytest.raises(ArtifactError, match="takes other inputs"):
        saved.fast.export_triton(tmp_path, version=3, max_batch_size=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def ports(*shapes: tuple[int | str, ...]) -> tuple[Port, ...]:
    return tuple(Port(f"x{index}", torch.float32, shape) for index, shape in enumerate(shapes))


def test_rows_of_many_callers_are_joined_where_each_is_answered_by_itself() -> None:
    made = Exported("", (), ports(("rows",), ("rows", 4)), ports(("rows", 2, 3)), 0.0, True)
    page = parsed(config(made, "ranker", 64))
    assert page["max_batch_size"] == [64] and page["dynamic_batching"] == [{}]
    # Triton has no tensor of rows alone: there is one number in each.
    assert [one["dims"] for one in (*page["input"], *page["output"])] == [[1], [4], [2, 3]]
    assert page["input"][0]["reshape"] == [{"shape": []}] and "reshape" not in page["input"][1]


@pytest.mark.parametrize(
    ("separate", "shapes"),
    [
        (False, (("rows", 4),)),
        (True, ((1, 4), ("rows", 4))),
        (True, ((4, "rows"),)),
        (True, (("rows", 4), ("tags values",))),
        (True, (("rows", "more"),)),
    ],
    ids=["rows depend", "one row", "rows behind", "jagged", "two free sizes"],
)
def test_other_rows_are_not_joined(separate: bool, shapes: tuple[tuple[int | str, ...], ...]) -> None:
    page = parsed(config(Exported("", (), ports(*shapes), ports(("rows",)), 0.0, separate), "x", 64))
    assert page["max_batch_size"] == [0] and "dynamic_batching" not in page
    assert [one["dims"] for one in page["input"]] == [
        [size if isinstance(size, int) else -1 for size in shape] for shape in shapes
    ]


def test_names_are_quoted() -> None:
    odd = Port('a "ü" \\ #{', torch.int64, (3,))
    page = parsed(config(Exported("", (), (odd,), (odd,), 0.0, True), "x", 8))
    assert page["input"][0]["name"] == ['a "ü" \\ #{']
