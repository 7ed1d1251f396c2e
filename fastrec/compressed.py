"""The compressed model: called exactly like the original, each batch served by the session measured fastest."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifact import Contents, Modules, payload, read, write
from .artifact.folder import refuse_other
from .as_called import plainly
from .backends import Backend, ModelSession, Repeated, Session, Source
from .errors import ForkSafetyError, InputError
from .exports import Exported, export_onnx, export_triton
from .guards import Guard
from .nonfinite import Apart
from .plan import ORIGINAL, Plan
from .program import Program
from .recipe import Recipe
from .report import Report
from .request import Once
from .rows import count_rows
from .sealed import Sealed
from .serving import LIMIT_BYTES, Merged, Scorer, precompute
from .serving.given import cast
from .shapes import fits, refusal
from .techniques import TECHNIQUES, Technique
from .trees import Leaf

__all__ = ["CompressedModel", "load"]

_SHAPES = 4096


class CompressedModel(Sealed):
    """A faster equivalent of a model, made by `compress`.

    Called like the model (or the method) it stands for, and answering in the same structure, dtypes and keys,
    without gradients. Features of the request may be given repeated for each candidate, or once. Batches in shapes
    that the fast sessions were not made for go to the original.

    Raises `IdOutOfRangeError` at ids that no table has, `RequestMismatchError` at rows that differ in a feature of the
    request and `InputError` at batches that do not fit, each naming feature and row. `report` says what was measured, `recipe` what was done,
    `exact` whether what serves keeps the answer up to float rounding: where no approximate session earned its place, it does.

    `save` writes it into a folder, from which `fastrec.load` makes it again; `notes` says what is otherwise there. Once saved or
    loaded it can be pickled, as the path of that folder, with what `load` has to be given: the classes of batches, by reference, and a
    model that could not be captured. Copies share everything: nothing in it changes, and what would (`half()`, `to(...)`, `train()`, an
    attribute that the original has) is an `InputError`. A process that was
    forked from one with several threads gets a `ForkSafetyError`: its threads are not there.
    """

    report: Report
    recipe: Recipe
    program: Program | None = None
    exact: bool = True
    sessions: Mapping[str, Session]
    plan: Plan | None
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        original: Program,
        sessions: Mapping[str, Session],
        plan: Plan | None,
        guard: Guard | None,
        once: Once,
        apart: Apart | None = None,
    ) -> None:
        super().__init__()
        # In a tuple, so that the original is no submodule: its mode must not change with this module's.
        self._original = (original,)
        self._layout = original.layout
        self.sessions = dict(sessions)
        self.sources = {}
        # Where it is saved, and what it takes to load it from there.
        self._wanted: Modules | None = None
        self._home: tuple[str, str, Any, tuple[type, ...]] | None = None
        self._process, self._threads = os.getpid(), torch.get_num_threads()
        self.plan = plan
        self._guard = guard
        self._apart = apart
        # The usual call, tensors by position and a tensor as the answer, takes no walk through containers.
        self._spread = all(isinstance(tree, Leaf) for tree in original.layout.trees)
        self._single = isinstance(original.layout.outputs, Leaf)
        # The session of each form of batch, and whether it repeats the request's features.
        self._routes: dict[tuple[tuple[torch.Size, torch.dtype], ...], tuple[Session, bool]] = {}
        self._once = once
        self._fallback = Repeated(ModelSession(original), once) if once else ModelSession(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer for one batch."""
        if os.getpid() != self._process:
            self.check_fork()
        if self.plan is None:
            return self._call_unforeseen(args, kwargs, None)
        flat = list(args) if self._spread and not kwargs else self._layout.flatten(args, kwargs)
        try:
            route = self._routes.get(tuple([(tensor.shape, tensor.dtype) for tensor in flat]))
        except AttributeError:
            route = None
        if route is None:
            flat = self._layout.flatten(args, kwargs)
            route = self._route(flat)
        if route is None:
            return self._call_unforeseen(args, kwargs, flat)
        session, several = route
        if several:
            flat = self._once.reduced(flat)
        if self._guard is not None:
            self._guard(flat)
        if self._apart is not None and not self._apart.clean(flat):
            merged = self._apart(flat, lambda x: session(*x), lambda x: self._fallback(*x))
            return self._layout.result(tuple(merged))
        return session(*flat)[0] if self._single else session.as_called(flat, self._layout)

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How this is called, `(args, kwargs)`, with a batch in the form of the example."""
        return self._layout.call_of(batch)

    def precompute(self, candidates: Any, *, limit_bytes: int = LIMIT_BYTES) -> Scorer:
        """A scorer of a known catalogue: what the candidates alone decide is computed now, for all of them.

        `candidates` holds the features of all M candidates, by name or as a tuple in their order. The scorer is called
        with a request and the numbers of candidates, `scorer(request, rows)`, or asked for the best of all,
        `scorer.topk(request, k)`.

        Raises `InputError` without `request_features`, where the model could not be captured, for candidates that do
        not fit, and beyond `limit_bytes`; `IdOutOfRangeError` at an id that no table has.
        """
        if not self._once:
            raise InputError(
                "nothing was declared of the request: compress with request_features=..., then precompute"
            )
        if self.program is None:
            raise InputError(
                "the model was not captured, so its parts are not known: score batches with the model itself"
            )
        # A scorer agrees with what serves, which is not quite the original where that approximates.
        original = self.original if self.exact else plainly(self.original, self._once, self.program)
        return precompute(original, self.program, candidates, guard=self._guard, limit_bytes=limit_bytes)

    def merged(
        self,
        *,
        at: tuple[int, int] = (8, 100),
        backends: Sequence[Backend] | None = None,
        seconds: float = 2.0,
        way: str | None = None,
    ) -> Merged:
        """Answers several requests in one call, each as this model does: see `fastrec.serving.Merged`, which says what there is to set.

        Raises `InputError` for a `way` that there is not. Cost: seconds, to look for the fastest way `at` a number of requests and
        how many candidates each has.
        """
        return Merged(self, at=at, backends=backends, seconds=seconds, way=way)

    @property
    def guard(self) -> Guard | None:
        """What checks each batch; None where nothing does, as where the original serves everything."""
        return self._guard if self.plan is not None else None

    @property
    def once(self) -> Once:
        """How batches hold the features of the request."""
        return self._once

    @property
    def digest(self) -> str:
        """The digest of the artifact that this was saved as or loaded from; nothing where it is in no folder."""
        return "" if self._home is None else self._home[1]

    @property
    def separates(self) -> bool:
        """Whether rows that are not finite are kept apart from what approximates, and go to the original."""
        return self._apart is not None

    @property
    def original(self) -> Program:
        """The original, as it serves what the sessions do not."""
        return self._original[0]

    def session(self, rows: int) -> Session:
        """The session that serves `rows` rows: flat tensors in, those of the request with one row; nothing checked."""
        # No rows are no work, and some inference libraries divide by their number: it would end the process.
        if self.plan is None or rows == 0 or rows in self._layout.exempt:
            return self._fallback
        return self.sessions.get(self.plan.name_for(rows), self._fallback)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model into a folder, in one step: what was there before stays until all is written.

        The folder holds graphs as data, every tensor once, digests of all, the report and a page about the model; no code and none
        of the caller's data. Cost: the captures and exports that loading then does without, some seconds each.

        Raises `ArtifactError`, naming the path, where it cannot be written, and `InputError` for what has no form there.
        """
        made = payload(self.contents(), self.sessions)
        digest = write(made, folder)
        model = self._home[2] if self._home else None
        if model is None and made.manifest["fallback"].kind == "model":
            model = self.original.model if self.original.entry == "forward" else self.original.function
        self._home = (os.path.abspath(os.fspath(folder)), digest, model, made.types)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """`save`, under the name that Hugging Face has for it."""
        self.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **settings: Any) -> CompressedModel:
        """`fastrec.load`, under the name that Hugging Face has for it."""
        return load(folder, **settings)

    def export_onnx(
        self, path: str | os.PathLike[str], *, inside: int = 256 << 20, everywhere: bool = True
    ) -> Exported:
        """Writes what serves as one ONNX file in standard operators, for any server that takes these.

        Inputs are the model's features under their names, outputs `output`, `output[0]` or `output.ctr` as the answer has them, with any
        number of rows; features of the request take one row. Lookups are inside, checks of ids are not: ranges are in the file's
        metadata. Constants of more than `inside` bytes together lie beside it, in `path` + ".data". Products of 8-bit integers are
        right on every processor; with `everywhere=False` on those like this one, and with VNNI in half of the time.

        The file is checked before it takes its place: valid, and answering in ONNX Runtime, bare and optimised, as the model does.

        Raises `CaptureError` for a model that was not captured, `BackendError` for what has no ONNX form or answers otherwise,
        `ArtifactError` where it cannot be written. Cost: seconds, and twice the tables' memory.
        """
        return export_onnx(self.contents(), path, inside=inside, everywhere=everywhere)

    def export_triton(
        self,
        repository: str | os.PathLike[str],
        *,
        name: str = "model",
        version: int = 1,
        max_batch_size: int = 1024,
        everywhere: bool = True,
    ) -> Exported:
        """`export_onnx` into a model repository of Triton: `<name>/config.pbtxt` and `<name>/<version>/model.onnx`.

        Triton may join the calls of its clients, up to `max_batch_size` rows, where every row is answered by itself; where a feature is the
        request's it may not, and dimensions are as in the file. Raises as `export_onnx`, and `ArtifactError` for a version that is there.
        """
        return export_triton(
            self.contents(), repository, name=name, version=version, max_batch_size=max_batch_size, everywhere=everywhere,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        if self._home is None:
            raise InputError(
                "a compressed model is pickled as the path of its artifact, and this one has none: save(folder) it first"
            )
        return _restored, self._home

    def __copy__(self) -> CompressedModel:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedModel:
        # Sessions serve many threads, and nothing in them changes.
        return copy.copy(self)

    def contents(self) -> Contents:
        """All that an artifact keeps of it."""
        return Contents(
            self.original, self.sources, self.plan, self._guard, self._once, self._apart is not None, self.program,
            self.exact, self.report, self.recipe, self._wanted,
        )  # fmt: skip

    def check_fork(self) -> None:
        """Raises `ForkSafetyError` where a call would wait for threads that this process does not have."""
        parallel = any(source.backend.own_threads for source in self.sources.values())
        if self._threads > 1 or parallel:
            raise ForkSafetyError(
                f"this process was forked from the one the model was made in, and the {self._threads} threads it computes with are "
                "not in it: load the model after the fork, start processes by spawn, or give torch one thread before "
                "(torch.set_num_threads(1); sessions of OpenVINO have threads whatever it is)"
            )
        self._process = os.getpid()

    def _route(self, flat: list[Tensor]) -> tuple[Session, bool] | None:
        """The session for batches of these shapes and whether they repeat the request, remembered; None for shapes that
        nobody foresaw.

        Narrower integers in `flat` are widened in place; other dtypes are refused.
        """
        features = self._layout.features
        given = tuple([(tensor.shape, tensor.dtype) for tensor in flat])
        rows = count_rows(self._once.candidates, flat) if self._layout.rows is not None else 1
        if rows is None:
            return None
        for index, (feature, (_, dtype)) in enumerate(zip(features, given, strict=True)):
            if dtype is not feature.dtype:
                flat[index] = cast(feature, flat[index])
            if not fits(feature, flat[index], rows):
                return None
        chosen = self.session(rows), self._once.several(flat)
        if len(self._routes) < _SHAPES and all(
            dtype is f.dtype for f, (_, dtype) in zip(features, given, strict=True)
        ):
            self._routes[given] = chosen
        return chosen

    def _call_original(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._once:
            flat = self._once.one(self._layout.flatten(args, kwargs))
            args, kwargs = self._layout.arguments(self._once.all(flat))
        with torch.no_grad():
            return self.original.function(*args, **kwargs)

    def _call_unforeseen(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], flat: list[Tensor] | None
    ) -> Any:
        """The original's answer; what it raises is named, of a batch that was not made `flat` where its sizes are at fault."""
        try:
            return self._call_original(args, kwargs)
        except InputError:
            raise
        except Exception as error:  # whatever a stranger's model raises
            if flat is not None:
                if self._guard is not None:
                    self._guard.refuse_ids(flat)
                raise refusal(self._layout.features, flat, error) from error
            if self._layout.rows is not None:
                flat = self._layout.flatten(args, kwargs)
                if not all(fits(f, t, None) for f, t in zip(self._layout.features, flat, strict=True)):
                    raise refusal(self._layout.features, flat, error) from error
            raise

    def extra_repr(self) -> str:
        """What serves, for `print`."""
        return ORIGINAL if self.plan is None else ", ".join(dict.fromkeys(self.plan.names))


def load(
    folder: str | os.PathLike[str],
    *,
    model: Any = None,
    types: Sequence[type] = (),
    verify: bool = True,
    techniques: Mapping[str, type[Technique]] = TECHNIQUES,
) -> CompressedModel:
    """The compressed model that `CompressedModel.save` wrote into a folder.

    On the machine it was saved on, with as many threads, it answers the same bits; elsewhere the same up to rounding, and `notes`
    says where it saw other bits. A backend that is missing is noted, and torch's own kernels serve in its place.

    `model` gives the original back, to serve batches in shapes that no graph of the artifact takes; one that could not be captured
    has to be given. `types` gives the classes that batches and answers are made of, if they are more than tensors, tuples, lists
    and dicts: nothing is imported by name. `techniques` is handed to `Recipe.from_json`. With `verify=False` digests are not
    compared: for folders that nobody else can write to.

    Raises `ArtifactNotFoundError`, `CorruptArtifactError` for files that are not as they were written, `UnsafeArtifactError` for
    what no artifact holds, and `InputError` for a model or class that has to be given, or is another. Cost: a pass over the
    files at 0.5 GB/s and more; tables are mapped, and shared by all processes that load them.
    """
    found = read(folder, model=model, types=types, verify=verify, techniques=techniques)
    parts = found.contents
    sessions = {
        name: Repeated(session, parts.once) if parts.sources[name].whole else session
        for name, session in found.sessions.items()
    }
    apart = Apart(parts.original.layout) if parts.apart else None
    made = CompressedModel(parts.original, sessions, parts.plan, parts.guard, parts.once, apart)
    made.sources, made.program, made.exact, made.notes = (
        parts.sources,
        parts.program,
        parts.exact,
        found.notes,
    )
    made.report, made.recipe = parts.report, parts.recipe
    made._wanted = parts.modules
    made._home = (str(Path(folder).absolute()), found.digest, model, tuple(types))
    return made


def _restored(path: str, digest: str, model: Any, types: tuple[type, ...]) -> CompressedModel:
    """What a pickle of a compressed model calls."""
    made = load(path, model=model, types=types)
    if made._home is not None:
        refuse_other(path, made._home[1], digest, meant="was pickled", cure="Pickle the model anew.")
    return made
