"""`fastrec benchmark` and `fastrec compare`: saved models timed here, call by call in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..compressed import CompressedModel, load
from ..errors import InputError
from ..measure import Latency, Ratio, fidelity, machine
from ..plain import to_plain
from ..plan import ORIGINAL, WORTH, compared
from ..report import Report
from ..sessions import original_call, served_call
from ..trees import tensors_of
from ..wording import amount, at, difference, duration, sized, spans, times
from .factory import here, model_of
from .outcome import FAILED, OK, Outcome
from .saved import batches_for, bytes_of, report_at
from .words import aligned, numbers

__all__ = ["benchmarked", "compared_saved"]

_SIZES = (1, 32, 100)
_JUDGED = 33


def benchmarked(folder: Path, *, model: str | None, batch_sizes: str | None, seconds: float) -> Outcome:
    """Times a saved model, beside its original where that is given; fails where a session is slower than that."""
    with here():
        original = None if model is None else model_of(model)
        fast = load(folder, model=original)
        sizes, draw = _sizes(batch_sizes, fast), batches_for(fast)
        calls: dict[str, Any] = {"saved": served_call(fast)}
        if original is not None:
            calls["original"] = original_call(fast.original)
        then = {size.rows: size.after.p50 for size in fast.report.sizes}
        rows, table, slower = [], [], False
        counted = fast.original.layout.counted
        messages = list(fast.notes)
        for size in sizes:
            samples = compared(size, calls, draw, _share(seconds, sizes), first=0)
            taken = samples.latency("saved")
            session = ORIGINAL if fast.plan is None else fast.plan.name_for(size)
            row = {"rows": size, "session": session, **_latency(taken), "saved_p50": then.get(size)}
            cells = [sized(size, counted), duration(taken.p50), _span(taken), _known(then.get(size)), session]
            if original is not None:
                ratio = samples.ratio("original", "saved")
                if session == ORIGINAL:
                    messages.append(
                        f"{at([size], counted)} the original serves, behind the checks of its batch"
                    )
                else:
                    slower = slower or _is_slower(ratio)
                row |= {"original": _latency(samples.latency("original")), "speedup": _ratio(ratio)}
                cells += [duration(samples.latency("original").p50), _said(ratio)]
            rows.append(row)
            table.append(cells)
    head = ["rows", "p50", "95 % interval", "as saved", "session"]
    head += ["original p50", "speed-up"] * (original is not None)
    data = {
        "folder": str(folder),
        "sizes": rows,
        "machine": to_plain(asdict(machine()), "machine"),
        "notes": list(fast.notes),
    }
    return Outcome(data, "\n".join(aligned([head, *table])), FAILED if slower else OK, tuple(messages))


def compared_saved(first: Path, second: Path, *, batch_sizes: str | None, seconds: float) -> Outcome:
    """Two artifacts timed in turns, or two reports side by side; fails where the second is slower."""
    a, b = report_at(first), report_at(second)
    both = first.is_dir() and second.is_dir()
    data: dict[str, Any] = {
        "a": {"path": str(first), "status": a.status, "headline": a.headline, "recipe": a.recipe.to_plain()},
        "b": {"path": str(second), "status": b.status, "headline": b.headline, "recipe": b.recipe.to_plain()},
        "paired": both,
        "same_recipe": a.recipe == b.recipe,
    }
    lines = [f"a: {_about(first, a)}", f"b: {_about(second, b)}"]
    messages: tuple[str, ...] = ()
    if both:
        data["a"]["bytes"], data["b"]["bytes"] = bytes_of(first), bytes_of(second)
        lines.append(f"files: {amount(data['a']['bytes'])} and {amount(data['b']['bytes'])}")
        rows, off, messages = _in_turns(load(first), load(second), batch_sizes, seconds)
        data["max_abs"] = off
        lines.append(f"answers differ by up to {difference(off)}")
    else:
        rows = _side_by_side(a, b)
        messages = ("reports were measured apart: only intervals that do not meet are told apart",)
        if _place(a) != _place(b):
            messages = ("reports of different machines: their times are not compared",)
            for row in rows:
                row["verdict"] = "not compared"
    data["sizes"] = rows
    head = ("rows", "a p50", "b p50", "b over a", "verdict")
    lines += aligned([head, *((sized(row["rows"], a.counted), duration(row["a_p50"]), duration(row["b_p50"]), row.pop("said"), row["verdict"]) for row in rows)])  # fmt: skip
    if not data["same_recipe"]:
        lines.append(f"recipes: {_recipe(a)} and {_recipe(b)}")
    slower = any(row["verdict"] == "slower" for row in rows)
    return Outcome(data, "\n".join(lines), FAILED if slower else OK, messages)


def _in_turns(
    a: CompressedModel, b: CompressedModel, batch_sizes: str | None, seconds: float
) -> tuple[list[dict[str, Any]], float, tuple[str, ...]]:
    """Both on the same fresh batches, and how far their answers differ."""
    if _takes(a) != _takes(b):
        raise InputError(f"the two take different batches: {_takes(a)} and {_takes(b)}")
    draw, again = batches_for(a), b.contents().once

    def batches(rows: int, index: int) -> list[Tensor]:
        return [tensor.contiguous() for tensor in again.all(again.same(draw(rows, index)))]

    calls = {"a": served_call(a), "b": served_call(b)}
    judged = batches(_JUDGED if a.original.layout.rows is not None else 1, 0)
    off = fidelity(tensors_of(calls["a"](judged)), tensors_of(calls["b"](judged))).max_abs
    rows, wide = [], []
    sizes = _sizes(batch_sizes, a)
    for size in sizes:
        samples = compared(size, calls, batches, _share(seconds, sizes), first=0)
        ratio = samples.ratio("a", "b")
        verdict = "slower" if _is_slower(ratio) else "faster" if ratio.faster else "no difference"
        if ratio.undecided:
            where = at([size], a.original.layout.counted)
            wide.append(f"{where} the interval is too wide to tell: give more --seconds")
        rows.append({
            "rows": size, "a_p50": samples.latency("a").p50, "b_p50": samples.latency("b").p50,
            "speedup": _ratio(ratio), "verdict": verdict, "said": _said(ratio),
        })  # fmt: skip
    return rows, off, (*a.notes, *b.notes, *wide)


def _side_by_side(a: Report, b: Report) -> list[dict[str, Any]]:
    """What both reports say of the sizes that they share."""
    after, rows = {size.rows: size.after for size in b.sizes}, []
    for size in a.sizes:
        if size.rows not in after:
            continue
        old, new = size.after, after[size.rows]
        verdict = "slower" if new.low > old.high else "faster" if new.high < old.low else "no difference"
        rows.append({
            "rows": size.rows, "a_p50": old.p50, "b_p50": new.p50, "speedup": {"value": old.p50 / new.p50},
            "verdict": verdict, "said": times(old.p50 / new.p50),
        })  # fmt: skip
    return rows


def _takes(fast: CompressedModel) -> list[tuple[str, str, list[int | None]]]:
    return [
        (f.name, str(f.dtype), [None if k == f.growing else n for k, n in enumerate(f.shape)])
        for f in fast.original.layout.features
    ]


def _sizes(given: str | None, fast: CompressedModel) -> Sequence[int]:
    """The numbers of rows to time: those asked for, those of the plan, or the usual."""
    layout = fast.original.layout
    if layout.rows is None:
        return (1,)
    found = numbers(given, "--batch-sizes") if given is not None else fast.plan.sizes if fast.plan else _SIZES
    if not all(found):
        raise InputError(f"--batch-sizes takes whole numbers above 0, got {given}")
    return [size for size in found if size not in layout.exempt]


def _share(seconds: float, sizes: Sequence[int]) -> float:
    return seconds / max(1, len(sizes))


def _is_slower(ratio: Ratio) -> bool:
    """Whether it is slower by more than a machine drifts."""
    return ratio.slower and ratio.value < 1 / WORTH


def _latency(taken: Latency) -> dict[str, Any]:
    return {"p50": taken.p50, "low": taken.low, "high": taken.high, "p95": taken.p95, "calls": taken.n}


def _ratio(ratio: Ratio) -> dict[str, float]:
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high}


def _span(taken: Latency) -> str:
    return spans(duration(taken.low), duration(taken.high))


def _said(ratio: Ratio) -> str:
    return f"{times(ratio.value)} ({spans(times(ratio.low), times(ratio.high))})"


def _known(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _about(path: Path, report: Report) -> str:
    return f"{path}: {report.headline}"


def _recipe(report: Report) -> str:
    return ", ".join(technique.name for technique in report.recipe) or "none"


def _place(report: Report) -> dict[str, Any]:
    """The machine, without what changes from day to day."""
    return {key: held for key, held in asdict(report.machine).items() if key not in ("date", "load")}
