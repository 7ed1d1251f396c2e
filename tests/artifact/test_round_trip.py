"""What is loaded answers as what was saved, bit for bit."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec import CompressedModel, Fuse, IdOutOfRangeError, InputError, RequestMismatchError, compress, load
from fastrec.artifact import check, write
from fastrec.artifact.graphs import graph_data, graph_of
from fastrec.backends import Backend, Eager, Inductor, OnnxRuntime, OpenVino
from fastrec.techniques import QuantizeLinears, QuantizeTables
from tests.zoo import ZOO, Entry, make
from tests.zoo.foreign import Answer, Keyed, Request

from .conftest import Saved, batch, ranker

INT8 = (Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears())
CASES: list[tuple[str, bool, bool, Backend]] = [
    ("dlrm", True, False, OpenVino()),
    ("two_tower", False, False, OnnxRuntime(lookups="session")),
    ("two_tower", True, True, OnnxRuntime()),
    ("bags", True, False, Eager()),
    ("padded_right", True, False, Eager()),
    ("dlrm", False, True, Eager()),
]


def entry(name: str) -> Entry:
    return next(one for one in ZOO if one.name == name)


def saved_and_loaded(
    one: Entry, folder: Path, backend: Backend, *, request: bool, int8: bool = False, **given: Any
) -> tuple[CompressedModel, CompressedModel]:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    model, rng = make(one), torch.Generator().manual_seed(0)
    target = model if one.entry == "forward" else getattr(model, one.entry)
    fast = compress(
        target,
        one.batch(8, rng),
        request_features=one.request if request else None,
        recipe=INT8 if int8 else None,
        calibration=[one.batch(60, rng)] if int8 else None,
        backends=[backend],
        batch_sizes=(16,),
        seconds=1,
        progress=False,
    )
    fast.save(folder)
    return fast, load(folder, **given)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") else bool(one == other)


def call(fast: CompressedModel, given: Any, *, one_request: bool) -> Any:
    args, kwargs = fast.call_of(given)
    if one_request:
        flat = fast._once.same(fast._layout.flatten(args, kwargs))
        args, kwargs = fast._layout.arguments(flat)
    return fast(*args, **kwargs)


@pytest.mark.usefixtures("served_anyway")
@pytest.mark.parametrize(
    ("name", "request_", "int8", "backend"),
    CASES,
    ids=[f"{n}-{'request-' * r}{'int8-' * q}{b.label}" for n, r, q, b in CASES],
)
def test_bit_for_bit(name: str, request_: bool, int8: bool, backend: Backend, tmp_path: Path) -> None:
    one = entry(name)
    fast, again = saved_and_loaded(one, tmp_path / "a", backend, request=request_, int8=int8)
    assert fast.plan is not None and again.plan == fast.plan and again.notes == ()
    assert [type(s) for s in again.sessions.values()] == [type(s) for s in fast.sessions.values()]
    for rows in (1, 5, 33):
        given = one.batch(rows, torch.Generator().manual_seed(rows))
        assert same(call(fast, given, one_request=request_), call(again, given, one_request=request_))


@pytest.mark.usefixtures("served_anyway")
def test_a_compiled_library_is_never_stored_and_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()).eval()
    if Inductor().unavailable() is not None:
        pytest.skip("no compiler")
    fast = compress(
        model, torch.randn(9, 6), backends=[Inductor()], batch_sizes=(4,), seconds=1, progress=False
    )
    fast.save(tmp_path / "a")
    assert {path.suffix for path in (tmp_path / "a").rglob("*") if path.is_file()} == {
        ".json",
        ".md",
        ".safetensors",
    }
    x = torch.randn(5, 6)
    assert torch.equal(load(tmp_path / "a")(x), fast(x))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    without = load(tmp_path / "a")
    torch.testing.assert_close(without(x), fast(x))
    assert "eager serves instead" in without.notes[0] and "g++" in without.notes[0]


def test_everything_else_comes_back(saved: Saved) -> None:
    again = load(saved.folder)
    assert again.report == saved.fast.report and again.recipe == saved.fast.recipe
    assert again.exact and again.notes == ()
    with pytest.raises(IdOutOfRangeError, match="'item', row 1: got id 90"):
        again(**(batch(3) | {"item": torch.tensor([0, 90, 1])}))
    with pytest.raises(RequestMismatchError, match="'user'"):
        again(**(batch(2) | {"user": torch.tensor([1, 2])}))
    with pytest.raises(InputError, match=r"'price'.*nan"):
        again(**(batch(2) | {"price": torch.tensor([1.0, float("nan")])}))
    once = batch(7) | {"user": batch(7)["user"][:1]}
    assert torch.equal(again(**once), saved.fast(**batch(7)))


def test_a_catalogue_is_scored_from_what_was_loaded(saved: Saved) -> None:
    candidates = {"item": torch.arange(60), "price": torch.randn(60)}
    user, rows = {"user": torch.tensor([3])}, torch.tensor([5, 1, 40])
    before, after = (fast.precompute(candidates) for fast in (saved.fast, load(saved.folder)))
    assert torch.equal(before(user, rows), after(user, rows))


def test_other_shapes_are_refused_without_the_original_and_served_with_it(saved: Saved) -> None:
    odd = batch(4) | {"price": torch.randn(4, 2)}
    with pytest.raises(InputError, match=r"'price' is \(4, 2\).*model=\.\.\."):
        load(saved.folder)(**odd)
    again = load(saved.folder, model=saved.model)
    assert torch.equal(again(**batch(5)), saved.fast(**batch(5)))
    with torch.no_grad():
        saved_says = saved.model(**batch(0))
    assert torch.equal(again(**batch(0)), saved_says)


def test_another_model_is_not_taken_for_the_original(saved: Saved) -> None:
    other = ranker()
    with torch.no_grad():
        other.tower[2].bias.add_(1.0)
    with pytest.raises(InputError, match="other numbers"):
        load(saved.folder, model=other)
    with pytest.raises(InputError, match=r"another than was compressed: '.*weight' is None"):
        load(saved.folder, model=nn.Linear(2, 2))


def test_the_same_bytes_but_for_when(saved: Saved, tmp_path: Path) -> None:
    saved.fast.save(tmp_path / "a")
    load(saved.folder).save(tmp_path / "b")
    for other in (tmp_path / "a", tmp_path / "b"):
        for path in sorted(saved.folder.rglob("*")):
            twin = other / path.relative_to(saved.folder)
            if path.name == "manifest.json":
                one, two = (json.loads(p.read_bytes()) for p in (path, twin))
                assert one.pop("created").keys() == two.pop("created").keys() == {"at", "sha256"}
                assert one == two
            elif path.is_file():
                assert path.read_bytes() == twin.read_bytes(), path.name


def test_no_row_of_the_callers_is_kept(saved: Saved, tmp_path: Path) -> None:
    secret = torch.tensor([0.123456789] * 20)
    fast = compress(
        ranker(), batch(20) | {"price": secret}, backends=[], batch_sizes=(1,), seconds=1, progress=False
    )
    fast.save(tmp_path / "a")
    needle = secret[:1].numpy().tobytes()
    assert not any(needle in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())


def test_the_manifest_says_what_goes_in(saved: Saved) -> None:
    manifest = check(saved.folder)
    user, item, price = manifest.inputs
    assert (user.name, user.request, user.low, user.high) == ("user", True, 0, 50)
    assert (item.dtype, item.shape, item.high) == ("int64", (None,), 90)
    assert (price.dtype, price.high) == ("float32", None)
    text = (saved.folder / "README.md").read_text()
    assert saved.fast.report.headline.split(";")[0][:20] in text.replace("\\", "") and "fastrec.load" in text


def test_a_model_that_nothing_was_faster_than(tmp_path: Path) -> None:
    fast = compress(ranker(), batch(9), backends=[], batch_sizes=(1,), seconds=1, progress=False)
    fast.save_pretrained(tmp_path / "a")
    again = CompressedModel.from_pretrained(tmp_path / "a")
    assert again.report.status == "unchanged"
    assert torch.equal(again(**batch(6)), fast(**batch(6)))


@pytest.mark.usefixtures("served_anyway")
def test_containers_of_the_callers_are_named_and_never_imported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tests\.zoo\.foreign\.Request.*types=\[Request\]"):
        saved_and_loaded(entry("nested"), tmp_path / "a", Eager(), request=False)
    fast, again = saved_and_loaded(
        entry("nested"), tmp_path / "a", Eager(), request=False, types=[Request, Answer]
    )
    given = entry("nested").batch(5, torch.Generator().manual_seed(5))
    before, after = (call(one, given, one_request=False) for one in (fast, again))
    assert type(before) is type(after) and same(before, after)


@pytest.mark.usefixtures("served_anyway")
def test_jagged_batches(tmp_path: Path) -> None:
    fast, again = saved_and_loaded(entry("jagged"), tmp_path / "a", Eager(), request=False, types=[Keyed])
    given = entry("jagged").batch(6, torch.Generator().manual_seed(5))
    assert same(call(fast, given, one_request=False), call(again, given, one_request=False))


class Shapes(nn.Module):
    """An answer in containers that Python and torch have."""

    def forward(self, x: Tensor, scale: float, order: str) -> dict[str, Any]:
        best = torch.max(x, 1)
        return OrderedDict(scaled=[x * scale, (x,)], best=best, name=order, none=None)


@pytest.mark.usefixtures("served_anyway")
def test_containers_of_python_and_torch_need_nothing(tmp_path: Path) -> None:
    given = (torch.randn(7, 3), 0.1, "up")
    fast = compress(Shapes(), given, backends=[Eager()], batch_sizes=(4,), seconds=1, progress=False)
    fast.save(tmp_path / "a")
    before, after = fast(*given), load(tmp_path / "a")(*given)
    assert type(after) is OrderedDict and type(after["best"]) is torch.return_types.max
    assert same(dict(before), dict(after))
    with pytest.raises(InputError, match=r"compressed with 0\.1"):
        load(tmp_path / "a")(given[0], 0.2, "up")


@pytest.mark.usefixtures("served_anyway")
@pytest.mark.parametrize("name", ["looping", "held"])
def test_a_model_that_was_not_captured_is_given_back(name: str, tmp_path: Path) -> None:
    one, rng = entry(name), torch.Generator().manual_seed(0)
    model = make(one)
    fast = compress(
        model,
        one.batch(16, rng),
        recipe=[QuantizeLinears()],
        calibration=[one.batch(100, rng)],
        backends=[Eager()],
        batch_sizes=(16,),
        seconds=1,
        progress=False,
    )
    fast.save(tmp_path / "a")
    with pytest.raises(InputError, match=r"model=\.\.\."):
        load(tmp_path / "a")
    again = load(tmp_path / "a", model=make(one))
    given = one.batch(16, rng)
    assert same(call(fast, given, one_request=False), call(again, given, one_request=False))
    assert fast.plan is None or any("codes" in str(m) for m in check(tmp_path / "a").modules.edited.values())


class Kept(nn.Module):
    """A model that cannot be copied, which keeps what it computed at its first call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(100, 8), nn.Embedding(50, 8)
        self.names = {"user": 1}.keys()
        self.register_buffer("vectors", None)

    def forward(self, user: Tensor) -> Tensor:
        if self.vectors is None:
            self.vectors = 2 * self.items.weight.detach()
        return self.users(user) @ self.vectors.T


def test_a_model_that_cannot_be_copied_is_given_back(tmp_path: Path) -> None:
    model, user = Kept().eval(), torch.arange(32)
    fast = compress(model, user, backends=[Eager()], batch_sizes=(32,), seconds=1, progress=False)
    assert fast.report.headline.startswith("Unchanged: nothing could be done (TypeError: cannot")
    fast.save(tmp_path / "a")
    expected = model(user)
    for given in (model, Kept().eval()):  # with its vectors, and before it has any
        assert torch.equal(load(tmp_path / "a", model=given)(user), expected)
    other = Kept().eval()
    other.users.weight.data.add_(1.0)
    with pytest.raises(InputError, match="other numbers"):
        load(tmp_path / "a", model=other)


def test_writing_gives_the_digest_that_does_not_know_when(saved: Saved, tmp_path: Path) -> None:
    one, two = write(saved.made, tmp_path / "a"), write(saved.made, tmp_path / "a", at="2026-01-01T00:00:00Z")
    assert one == two


class Score(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (user * item).sum(1)


def test_features_of_other_numbers_of_rows_are_told_as_such(tmp_path: Path) -> None:
    user, item = torch.randn(2, 8, 4)
    fast = compress(
        Score(), (user, item), recipe=Fuse(), backends=Eager(), batch_sizes=(8,), seconds=1, progress=False
    )
    fast.save(tmp_path / "a")
    with pytest.raises(InputError, match=r"other numbers of rows than one another: 'user' 3, 'item' 8"):
        load(tmp_path / "a")(user[:3], item)


class Positions(nn.Module):
    """Some libraries make masks of as many numbers as a list has places, repeated for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.tower = nn.Embedding(100, 8), nn.Linear(8, 1)

    def forward(self, bought: Tensor, length: Tensor) -> Tensor:
        rows, places = bought.shape
        mask = torch.arange(places).repeat(rows, 1) < length
        mask = mask & (bought != 7)
        return self.tower((self.table(bought) * mask.unsqueeze(-1)).sum(1))


@pytest.mark.usefixtures("served_anyway")
def test_what_an_operator_repeats_is_not_how_often(tmp_path: Path) -> None:
    given = torch.randint(100, (6, 30)), torch.randint(1, 31, (6, 1))
    fast = compress(
        Positions().eval(), given, backends=[OnnxRuntime()], batch_sizes=(6,), seconds=1, progress=False
    )
    fast.save(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(*given), fast(*given))


def test_names_of_nodes_are_never_those_of_python() -> None:
    graph = fx.Graph()
    masks = graph.placeholder("a"), graph.placeholder("b")
    both = graph.call_function(torch.ops.aten.__and__.Tensor, masks)
    graph.output((both,))
    assert both.name.startswith("__")
    data = graph_data(fx.GraphModule(nn.Module(), graph), None)  # type: ignore[arg-type]  # there are no tensors
    again = graph_of(data, None, "here")  # type: ignore[arg-type]
    (answer,) = again(torch.tensor([True, True]), torch.tensor([True, False]))
    assert answer.tolist() == [True, False]
