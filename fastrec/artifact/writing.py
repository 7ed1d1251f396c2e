"""A compressed model onto the disk: graphs as data, tensors once, the answers to a drawn batch, and a page about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..as_called import AsCalled
from ..backends import BACKENDS, ModelSession, Session, Source, Translated
from ..capture import capture
from ..errors import CaptureError, InputError, UnsafeArtifactError
from ..plain import to_plain
from ..plan import ORIGINAL
from ..program import Program
from ..version import VERSION
from .card import card
from .checking import try_reading
from .contents import Contents
from .example import ROWS, drawn
from .folder import MANIFEST
from .graphs import constants_of, graph_data, path_of, with_plain_names
from .guarding import guard_data
from .layouts import classes_of, layout_data
from .manifest import (
    Answers,
    Example,
    Fallback,
    Input,
    Manifest,
    Model,
    Modules,
    manifest_bytes,
    read_manifest,
)
from .manifest import Session as Entry
from .modules import Edits, edits_of
from .onnx_files import stamped
from .replacing import Writer, replaced
from .tensors import Tensors, digest_of, dtype_name

__all__ = ["Payload", "described", "payload", "write"]


@dataclass
class Payload:
    """All that goes into an artifact, ready to be written, and the classes that loading it has to be given."""

    manifest: dict[str, Any]
    tensors: Tensors
    texts: dict[str, bytes]
    types: tuple[type, ...] = ()


@dataclass
class _Work:
    """What has been collected so far."""

    graphs: dict[int, str] = field(default_factory=dict)
    held: list[tuple[str, fx.GraphModule, Program | None]] = field(default_factory=list)

    def graph(self, name: str, gm: fx.GraphModule, program: Program | None = None) -> str:
        """The name of a graph, which is kept once."""
        if id(gm) not in self.graphs:
            self.graphs[id(gm)] = name
            self.held.append((name, with_plain_names(gm), program))
        return self.graphs[id(gm)]


def write(made: Payload, folder: str | os.PathLike[str], at: str | None = None) -> str:
    """Writes an artifact in one step, and gives the digest of its manifest.

    Raises `ArtifactError`, naming the path, where it cannot be written, and `InputError` where what was written could not be
    loaded: what was there before still is.
    """
    target = Path(os.path.abspath(os.fspath(folder)))
    with replaced(target) as fresh:
        writer = Writer(fresh)
        for name, text in made.texts.items():
            writer.write(name, text)
        with writer.open("tensors.safetensors") as file:
            made.tensors.write(file)
        manifest = Manifest(**made.manifest, files=dict(writer.files))
        data = manifest_bytes(manifest, at or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        Writer(fresh).write(MANIFEST, data)
        try:
            digest = read_manifest(data, str(target / MANIFEST))[1]
            try_reading(fresh, made.types)
        except (UnsafeArtifactError, InputError) as error:
            said = str(error).replace(str(fresh), str(target))
            raise InputError(f"the model cannot be saved, as it could not be loaded: {said}") from error
    return digest


def payload(contents: Contents, sessions: Mapping[str, Session]) -> Payload:
    """What an artifact of this model holds. Cost: the exports of its sessions, and a capture of the original.

    Raises `InputError` for what has no form in an artifact.
    """
    work, tensors = _Work(), Tensors()
    layout = contents.original.layout
    if contents.program is not None:
        work.graph("plain", _graph(contents.program), contents.program)
    fallback, modules, edits, original = _fallback(contents, work)
    if (contents.plan is not None or contents.once) and fallback.kind == "model":
        _refuse_opaque(contents.original)
    translated: dict[str, Translated] = {}
    for place, (name, source) in enumerate(contents.sources.items()):
        if source.backend.name not in BACKENDS:
            raise InputError(
                f"session {name!r} is of backend {source.backend.name!r}, which fastrec does not know when it loads"
            )
        if isinstance(source.program.model, fx.GraphModule):
            work.graph(f"session-{place}", source.program.model, source.program)
            if (found := sessions[name].translated) is not None:
                translated[name] = found
                if found.front is not None:
                    work.graph(f"front-{place}", found.front)
    computed = contents.guard.computed if contents.guard is not None else None
    if computed is not None:
        work.graph("computed", computed)
    for _, gm, _ in work.held:
        for attribute, tensor in constants_of(gm).items():
            tensors.add(path_of(gm, attribute), tensor)
    for found in translated.values():
        for name, tensor in found.constants.items():
            tensors.add(f"onnx.{name}", tensor)
    if edits is not None:
        edits.add_to(tensors)
    batch, answers = _answers(contents, sessions, original)
    for index, tensor in enumerate(batch or ()):
        tensors.add(f"example.{index}", tensor)
    for name, given in answers.items():
        for index, tensor in enumerate(given):
            tensors.add(f"answers.{name}.{index}", tensor)
    tensors.settle()
    texts = {
        f"graphs/{name}.json": _json({
            "graph": graph_data(gm, tensors),
            "layout": None if program is None else layout_data(program.layout),
            "entry": "forward",
        })
        for name, gm, program in work.held
    }  # fmt: skip
    entries = []
    features = [feature.name for feature in layout.features]
    for place, (name, source) in enumerate(contents.sources.items()):
        model = None
        if name in translated:
            file = f"graphs/session-{place}.onnx"
            found = translated[name]
            proto = texts[file] = stamped(found.proto, VERSION, features)
            found = replace(found, copied_bytes=found.copied_bytes - len(found.proto) + len(proto))
            model = _model_entry(file, found, work, tensors)
        entries.append(_session_entry(name, source, work, model))
    example = None
    if batch is not None:
        said = {name: _answers_entry(given, tensors) for name, given in answers.items()}
        example = Example(ROWS, tuple(tensors.refer(tensor) for tensor in batch), said)
    if edits is not None and modules is not None:
        modules = Modules(modules.type, modules.tensors, modules.sha256, modules.entry, edits.data(tensors))
    plan = contents.plan
    report = contents.report
    manifest: dict[str, Any] = {
        "fastrec": VERSION,
        "status": report.status,
        "headline": report.headline,
        "exact": contents.exact,
        "inputs": described(contents),
        "layout": layout_data(layout),
        "check_request": contents.once.check,
        "guard": None if contents.guard is None else guard_data(contents.guard),
        "computed": None if computed is None else work.graphs[id(computed)],
        "apart": contents.apart,
        "plan": None if plan is None else tuple(zip(plan.sizes, plan.names, strict=True)),
        "sessions": tuple(entries),
        "program": None if contents.program is None else work.graphs[id(contents.program.model)],
        "fallback": fallback,
        "modules": modules,
        "example": example,
        "recipe": contents.recipe.to_plain(),
        "machine": to_plain(asdict(report.machine), "machine"),
        "threads": torch.get_num_threads(),
    }
    texts["report.json"] = report.to_json().encode()
    texts["README.md"] = card(report, manifest["inputs"], entries, fallback).encode()
    layouts = (layout, *(program.layout for _, _, program in work.held if program is not None))
    types = dict.fromkeys(kind for one in layouts for kind in classes_of(one))
    return Payload(manifest, tensors, texts, tuple(types))


def _fallback(
    contents: Contents, work: _Work
) -> tuple[Fallback, Modules | None, Edits | None, Program | None]:
    """Who serves the rest once loaded, what is known of the model's modules, what was done to them, and who serves it as a graph."""
    original = contents.original
    if isinstance(original.model, AsCalled):
        source = original.model.source
        if source is None:
            raise InputError("what serves the rest is no program: it cannot be saved")
        kind = "plain" if original.model.once else "graph"
        return Fallback(kind, work.graph("original", _graph(source), source)), contents.modules, None, source  # type: ignore[arg-type]  # one of the two
    modules = edits_of(original.model, original.entry, {})
    edited = [s.program for s in contents.sources.values() if not isinstance(s.program.model, fx.GraphModule)]
    if edited:
        if edited[0].model is original.model:
            raise InputError(
                "the model could not be captured and was compressed with keep_original=False: what was done to its modules is "
                "not known any more. Compress it with keep_original=True to save it"
            )
        edits = Edits(original.model, edited[0].model)
        return Fallback("model", None, "its modules were edited"), modules, edits, None
    try:
        graph = capture(original)
        name = work.graph("original", _graph(graph), graph)
        _check_storable(graph)
    except (CaptureError, InputError) as error:
        if contents.plan is not None:
            raise
        return Fallback("model", None, str(error)[:500]), modules, None, None
    except Exception as error:  # noqa: BLE001 - a model that cannot even be copied is given back by the caller
        return Fallback("model", None, f"{type(error).__name__}: {error}"[:500]), modules, None, None
    return Fallback("graph", name), modules, None, graph


def _check_storable(graph: Program) -> None:
    """Raises `InputError` where the graph has something that an artifact has no form for."""
    tensors = Tensors()
    for name, tensor in constants_of(_graph(graph)).items():
        tensors.add(name, tensor)
    layout_data(graph.layout)


def _answers(
    contents: Contents, sessions: Mapping[str, Session], original: Program | None
) -> tuple[list[Tensor] | None, dict[str, Sequence[Tensor]]]:
    """A drawn batch in the model's flat form, and what every session and the graph of the original answer to it."""
    layout, once, reason = contents.original.layout, contents.once, ""
    for given in drawn(layout.features, contents.guard, ROWS if layout.rows is not None else 1):
        flat = once.all(once.same(given))
        asked = once.one(flat)
        answers: dict[str, Sequence[Tensor]] = {}
        try:
            if contents.guard is not None:
                contents.guard(asked)
            serving = ModelSession(contents.original)
            if original is not None or not sessions:
                answers[ORIGINAL] = serving(*flat)
            for name, session in sessions.items():
                answers[name] = tuple(tensor.clone() for tensor in session(*asked))
        except Exception as error:  # noqa: BLE001 - what was drawn may be nothing that the model takes: the next one may
            reason = f"{type(error).__name__}: {error}"[:300]
            continue
        return flat, answers
    if any(isinstance(source.program.model, fx.GraphModule) for source in contents.sources.values()):
        raise InputError(
            "no batch could be drawn that the model takes, and the caller's own is not kept: sessions are made with one. "
            f"The last one drawn: {reason}"
        )
    return None, {}


def _graph(program: Program) -> fx.GraphModule:
    if not isinstance(program.model, fx.GraphModule):
        raise InputError(f"a {type(program.model).__name__} is no captured graph: it cannot be saved")
    return program.model


def _refuse_opaque(original: Program) -> None:
    if held := [name for name in original.layout.opaque() if not name.startswith("the answer:")]:
        raise InputError(f"the model's call holds objects that cannot be saved: {', '.join(held)}")


def _model_entry(file: str, found: Translated, work: _Work, tensors: Tensors) -> Model:
    return Model(
        file,
        found.inputs,
        {name: tensors.refer(tensor) for name, tensor in found.constants.items()},
        found.copied_bytes,
        None if found.front is None else work.graphs[id(found.front)],
        found.alike,
    )


def _session_entry(name: str, source: Source, work: _Work, model: Model | None) -> Entry:
    graph = source.program.model
    settings = to_plain(asdict(source.backend), name)
    return Entry(name, source.backend.name, settings, work.graphs.get(id(graph)), source.whole, model)


def _answers_entry(given: Sequence[Tensor], tensors: Tensors) -> Answers:
    return Answers(
        tuple(tensors.refer(tensor) for tensor in given), tuple(digest_of(tensor) for tensor in given)
    )


def described(contents: Contents) -> tuple[Input, ...]:
    """The inputs in the caller's words, with the ranges of ids that the guard allows."""
    features = contents.original.layout.features
    bounds = contents.guard.bounds if contents.guard is not None else (None,) * len(features)
    made = []
    for feature, bound in zip(features, bounds, strict=True):
        shape = tuple(None if axis == feature.growing else n for axis, n in enumerate(feature.shape))
        low = high = None
        if bound is not None and bound.uniform and np.isfinite(bound.high).all():
            low, high = int(max(bound.low.flat[0], 0)), int(bound.high.flat[0])
        made.append(Input(feature.name, dtype_name(feature.dtype), shape, feature.request, low, high))
    return tuple(made)


def _json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n"
