"""`fastrec compress`: the caller's model into a folder, within a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backends import BACKENDS
from ..budget import Budget
from ..errors import InputError
from ..pipeline import compress
from ..recipe import Recipe
from ..render import write_html
from .factory import arguments_of, here
from .outcome import FAILED, OK, Outcome
from .words import losses, names, numbers

__all__ = ["compressed"]

_MISSED = ("budget_missed", "not_certifiable")


def compressed(
    spec: str,
    out: Path,
    *,
    budget: Sequence[str] = (),
    segments: Sequence[str] = (),
    limit_bytes: int | None = None,
    p95_ms: float | None = None,
    minimize: str | None = None,
    recipe: Path | None = None,
    resume: Path | None = None,
    request_features: str | None = None,
    batch_sizes: str | None = None,
    backends: str | None = None,
    seconds: float | None = None,
    page: Path | None = None,
) -> Outcome:
    """Compresses what the function gives, saves it, and tells what was gained. What is said here comes before what the function gives."""
    asked: dict[str, Any] = {}
    if recipe is not None:
        asked["recipe"] = _recipe(recipe)
    if resume is not None:
        asked["resume"] = resume
    if request_features is not None:
        asked["request_features"] = names(request_features, "--request-features")
    if batch_sizes is not None:
        asked["batch_sizes"] = numbers(batch_sizes, "--batch-sizes")
    if backends is not None:
        asked["backends"] = [_backend(name) for name in names(backends, "--backends")]
    if seconds is not None:
        asked["seconds"] = seconds
    limits: dict[str, Any] = {
        "max_loss": losses(budget, "--budget"),
        "segments": losses(segments, "--segments"),
        "bytes": limit_bytes,
        "p95_ms": p95_ms,
        "minimize": minimize,
    }
    with here():
        given = arguments_of(spec) | asked
        given["budget"] = _budget(given.get("budget"), {key: held for key, held in limits.items() if held})
        fast = compress(given.pop("model"), given.pop("batch"), **given)
        fast.save(out)
    report = fast.report
    if page is not None:
        write_html(report, page)
    code = FAILED if report.status in _MISSED else OK
    data = {
        "status": report.status,
        "headline": report.headline,
        "exact": fast.exact,
        "folder": str(out),
        "html": None if page is None else str(page),
        "report": json.loads(report.to_json()),
    }
    return Outcome(data, f"{report}\nsaved in {out}", code)


def _budget(given: Budget | None, limits: Mapping[str, Any]) -> Budget | None:
    if not limits:
        return given
    if limits.get("minimize", "latency") not in ("latency", "bytes"):
        raise InputError(f"--minimize takes latency or bytes, got {limits['minimize']!r:.40}")
    return Budget(**limits) if given is None else replace(given, **limits)


def _recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--recipe {path} cannot be read: {error}") from error


def _backend(name: str) -> Any:
    if name not in BACKENDS:
        raise InputError(f"--backends: no backend {name!r:.40}, there are {', '.join(BACKENDS)}")
    return BACKENDS[name]()
