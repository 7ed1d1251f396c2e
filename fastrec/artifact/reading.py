"""A compressed model from the disk: what is not as it was written, or is of no artifact, is refused before it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import BACKENDS, Backend, Eager, Session, Source
from ..errors import FastrecError, InputError, UnsafeArtifactError
from ..measure import fidelity
from ..plain import from_plain
from ..plan import ORIGINAL, Plan
from ..program import Program, target_of
from ..quiet import COMPILING
from ..recipe import Recipe
from ..report import Report
from ..request import Once
from ..techniques import TECHNIQUES, Technique
from .contents import Contents, Loaded
from .fallback import standing_for
from .folder import Folder, opened
from .front import Front
from .layouts import Classes
from .manifest import Session as Entry
from .modules import check_model, edit
from .parts import TEXT, Parts
from .tensors import digest_of

__all__ = ["read"]


def read(
    folder: str | os.PathLike[str],
    *,
    model: Any = None,
    types: Sequence[type] = (),
    verify: bool = True,
    techniques: Mapping[str, type[Technique]] = TECHNIQUES,
    run: bool = True,
) -> Loaded:
    """The contents of an artifact, its sessions open; closed, and nothing compared, unless it is to `run`.

    Raises `ArtifactNotFoundError`, `CorruptArtifactError`, `UnsafeArtifactError`, and `InputError` for a model that has to be
    given, or is another, and for classes that were not given.
    """
    with opened(folder, verify=verify) as files:
        return _Reading(files, model, Classes(types), techniques, run).loaded()


class _Reading:
    """One artifact as it is loaded."""

    def __init__(
        self,
        files: Folder,
        model: Any,
        classes: Classes,
        techniques: Mapping[str, type[Technique]],
        run: bool,
    ) -> None:
        self._run = run
        self._files, self._parts, self._manifest = files, Parts(files), files.manifest
        self._front = Front(self._parts, classes)
        self._model, self._techniques = model, techniques
        self._notes: list[str] = []

    def loaded(self) -> Loaded:
        """Everything."""
        manifest, front = self._manifest, self._front
        original, guard = self._original(), front.guard()
        sources, sessions = self._sessions(original)
        plan = None
        if manifest.plan is not None:
            plan = Plan(tuple(rows for rows, _ in manifest.plan), tuple(name for _, name in manifest.plan))
            if not plan.sizes or not set(plan.names) <= {*sources, ORIGINAL}:
                raise UnsafeArtifactError(
                    f"{self._files.where('manifest.json')}: the plan names sessions that there are not"
                )
        report = self._report()
        contents = Contents(
            original, sources, plan, guard, front.once, manifest.apart,
            None if manifest.program is None else front.program(manifest.program),
            manifest.exact, report, report.recipe, manifest.modules,
        )  # fmt: skip
        answers = self._answers()
        if self._run:
            self._compare(sessions, answers)
        return Loaded(contents, sessions, tuple(self._notes), self._files.digest, front.flat, answers)

    def _answers(self) -> dict[str, list[Tensor]]:
        """What was answered to the drawn batch where it was saved."""
        example, where = self._manifest.example, self._files.where("manifest.json")
        if example is None:
            return {}
        return {
            name: [self._parts.stored.tensor(dict(place), where) for place in said.tensors]
            for name, said in example.answers.items()
        }

    def _original(self) -> Program:
        """Who serves the rest: the model that was given, or a graph."""
        fallback, modules = self._manifest.fallback, self._manifest.modules
        front, layout = self._front, self._front.layout
        if self._model is not None:
            module, entry = target_of(self._model)
            if modules is None:
                raise InputError(
                    "the artifact was saved without its original (keep_original=False), and takes none"
                )
            check_model(module, modules)
            if entry not in ("forward", modules.entry):
                raise InputError(f"the model's {modules.entry!r} was compressed, {entry!r} was given")
            return _private(Program(module, None, layout, modules.entry))
        if fallback.kind == "model" or fallback.graph is None:
            raise InputError(
                f"this artifact is loaded with its original, load(folder, model=...), a {modules.type if modules else 'model'} "
                f"with the tensors it was compressed with: {fallback.why or 'it was not captured'}"
            )
        bare = Program(nn.Module(), None, layout)
        once = front.once if fallback.kind == "plain" else Once(())
        return standing_for(bare, once, front.program(fallback.graph, whole=fallback.kind == "graph"))

    def _sessions(self, original: Program) -> tuple[dict[str, Source], dict[str, Session]]:
        sources: dict[str, Source] = {}
        sessions: dict[str, Session] = {}
        for entry in self._manifest.sessions:
            if entry.graph is None:
                program = self._edited(original)
            else:
                program = self._front.program(entry.graph, whole=entry.whole)
            sources[entry.name] = Source(self._backend(entry), program, entry.whole)
            if self._run:
                sessions[entry.name] = self._opened(entry, program)
        return sources, sessions

    def _edited(self, original: Program) -> Program:
        modules = self._manifest.modules
        assert modules is not None
        draft = original.draft().eval()
        edit(draft, modules.edited, self._parts.stored, self._files.where("manifest.json"))
        return original.with_model(draft)

    def _backend(self, entry: Entry) -> Backend:
        if entry.backend not in BACKENDS:
            raise UnsafeArtifactError(
                f"session {entry.name!r:.80} is of an unknown backend {entry.backend!r:.40}"
            )
        try:
            return from_plain(BACKENDS[entry.backend], dict(entry.settings), f"session {entry.name!r:.80}")
        except InputError as error:
            raise UnsafeArtifactError(str(error)) from error

    def _opened(self, entry: Entry, program: Program) -> Session:
        """The session, or where it cannot be had here, one of the same graph by torch's own kernels."""
        backend, model = self._backend(entry), self._parts.translated(entry)
        reasons = []
        for found in dict.fromkeys([model is not None, False]):
            try:
                with COMPILING:
                    return backend.open(model, program) if found and model else backend.compile(program)
            except FastrecError as error:
                reasons.append(str(error))
        self._notes.append(
            f"{entry.name} cannot be had here, eager serves instead: {'; '.join(dict.fromkeys(reasons))}"[
                :500
            ]
        )
        return Eager().compile(program)

    def _report(self) -> Report:
        where = self._files.where("report.json")
        try:
            text = self._files.read("report.json", TEXT).decode()
            report = Report.from_json(text, techniques=self._techniques)
            recipe = Recipe.from_plain(_thawed(self._manifest.recipe), techniques=self._techniques)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        except UnicodeDecodeError as error:
            raise UnsafeArtifactError(f"{where} is no text: {error}", path=where) from error
        return replace(report, recipe=recipe)

    def _compare(self, sessions: Mapping[str, Session], answers: Mapping[str, Sequence[Tensor]]) -> None:
        """Notes where answers to the drawn batch are other bits than where it was saved."""
        example = self._manifest.example
        flat, once = self._front.flat, self._front.once
        if example is None or flat is None:
            return
        if torch.get_num_threads() != self._manifest.threads:
            self._notes.append(
                f"saved with {self._manifest.threads} threads, loaded with {torch.get_num_threads()}: sums may round otherwise"
            )
        for entry in self._manifest.sessions:
            said = example.answers.get(entry.name)
            if said is None:
                continue
            given = flat if entry.whole else once.one(flat)
            found = [tensor.clone() for tensor in sessions[entry.name](*given)]
            if tuple(digest_of(tensor) for tensor in found) != said.sha256:
                off = fidelity(answers[entry.name], found)
                self._notes.append(
                    f"{entry.name}: answers differ from those where it was saved by up to {off.max_abs:.1g} on a drawn batch"
                )


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _private(given: Program) -> Program:
    """A copy of the model that is given back; itself where it cannot be copied, as it served when it was compressed."""
    try:
        return given.private(buffers=False)
    except Exception:  # noqa: BLE001 - a stranger's module may refuse to be copied in any way
        return given
