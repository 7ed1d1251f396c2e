"""The serving form for a known catalogue: what the candidates alone decide is computed once, for all of them.

    score(u, C[rows])  =  score(user(u), items(C)[rows])

`precompute` runs the candidates' side of a graph over the catalogue and keeps the result; a `Scorer` runs the
request's side, and what needs both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..backends.direct import direct
from ..errors import IdOutOfRangeError, InputError, MeasurementError
from ..guards import Guard, extremes
from ..inputs import Feature
from ..program import Program
from ..rows import take_rows
from ..trees import describe
from .catalogue import Catalogue
from .sides import Sides, split_sides
from .unseen import are_near, best_unseen, filled

__all__ = ["LIMIT_BYTES", "Scorer", "precompute"]

LIMIT_BYTES = 4 << 30
"""What a scorer may hold unless told."""

_CHUNK_BYTES, _FEWEST = 64 << 20, 1024
_CHECKED = 256
_RESCORED, _PADDED = 4096, 32


def precompute(
    original: Program,
    asked: Program,
    candidates: Any,
    *,
    guard: Guard | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Scorer:
    """The scorer of a catalogue of M candidates.

    `original` is the model's program, `asked` its captured graph of one request, `ask(capture(original))`, rewritten
    or not, and `guard` that of the graph before it was rewritten. `candidates` holds all candidates' features, M
    rows of each: a mapping of names, or a tuple in the order of the features. Of a matrix with columns of the
    request, these may be left out. They are copied.

    Raises `InputError` for candidates that do not fit or would take more than `limit_bytes` (nothing is computed
    then), `IdOutOfRangeError` at an id that no table has, naming feature and row. Cost: one pass over the catalogue,
    in chunks of some 64 MB.

    Example:
        >>> from dataclasses import replace
        >>> from fastrec.capture import capture
        >>> from fastrec.declared import read_request
        >>> from fastrec.request import ask
        >>> class Dot(torch.nn.Module):
        ...     def forward(self, user, item):
        ...         return (user * item).sum(-1)
        >>> original = Program.read(Dot(), (torch.ones(4, 2), torch.randn(4, 2)))
        >>> features = read_request(original.layout.features, ["user"])
        >>> original = replace(original, layout=replace(original.layout, features=features))
        >>> items = torch.tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 3.0]])
        >>> scorer = precompute(original, ask(capture(original)), {"item": items})
        >>> scorer({"user": torch.tensor([[1.0, 1.0]])}, [2, 0])
        tensor([6., 3.])
        >>> values, rows = scorer.topk({"user": torch.tensor([[1.0, 1.0]])}, 2)
        >>> values.tolist(), rows.tolist()
        ([6.0, 5.0], [2, 1])
    """
    catalogue = Catalogue(original, asked, guard)
    given = catalogue.read_candidates(candidates)
    for whole in (False, True):
        sides = split_sides(asked, whole=whole)
        needed = _needed(sides, catalogue, given)
        if needed > limit_bytes:
            raise InputError(
                f"the precomputed form of {catalogue.count(given):,} candidates would take {needed:,} bytes "
                f"({needed / 2**30:.3g} GiB), allowed are {limit_bytes:,}. Give fewer candidates or raise limit_bytes."
            )
        made = Scorer(catalogue, sides, _run_items(sides, catalogue, given), given)
        if made.agrees():
            return made
    raise MeasurementError(
        "the precomputed form answers differently from the model. Score batches with the model itself."
    )


def _needed(sides: Sides, catalogue: Catalogue, given: Sequence[Tensor]) -> int:
    """Bytes that a scorer will hold: what `items` computes, and the features."""
    results: Any = sides.items.graph.output_node().args[0]
    rows = sum(_bytes(node.meta["val"]) for node in results)
    return rows * catalogue.count(given) + sum(given[i].nbytes for i in catalogue.candidates)


def _run_items(sides: Sides, catalogue: Catalogue, given: Sequence[Tensor]) -> list[Tensor]:
    """What the candidates alone decide, rows first, computed chunk by chunk."""
    rows, held = catalogue.count(given), list[Tensor]()
    step = _chunk(sides.items, rows) if sides.axes else rows
    for start in range(0, rows, step):
        part = take_rows(catalogue.features, given, torch.arange(start, min(start + step, rows)))
        with torch.no_grad():
            results = sides.items(*[part[i] for i in sides.candidates])
        made = [tensor.movedim(axis, 0) for tensor, axis in zip(results, sides.axes, strict=True)]
        held = held or [torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype) for tensor in made]
        for whole, tensor in zip(held, made, strict=True):
            whole[start : start + step] = tensor
    return held


def _chunk(gm: fx.GraphModule, rows: int) -> int:
    """How many rows to compute at a time, so that no tensor on the way takes more than some 64 MB."""
    widest = max((_bytes(node.meta.get("val")) for node in gm.graph.nodes), default=1)
    return min(rows, max(_FEWEST, _CHUNK_BYTES // max(1, widest)))


def _bytes(value: Any) -> int:
    """Bytes of a fake tensor at one row; none for what has no rows."""
    if isinstance(value, (tuple, list)):
        return sum(_bytes(part) for part in value)
    if not isinstance(value, Tensor) or not any(isinstance(n, torch.SymInt) for n in value.shape):
        return 0
    sizes = [n if isinstance(n, int) else n.node.expr for n in value.shape]
    return value.element_size() * math.prod(
        n if isinstance(n, int) else int(n.subs(dict.fromkeys(n.free_symbols, 1))) for n in sizes
    )


class Scorer:
    """Scores of one request's candidates, out of a catalogue prepared by `precompute`.

    `scorer(request, rows)` is the model's answer for these rows of the catalogue, `scorer.topk(request, k)` the best
    of all M `candidates`. A request is a mapping of names to one row of each of its features, or a tuple in the order
    of the features. `resident_bytes` is what is kept beside the model. Calls are thread-safe.
    """

    def __init__(
        self, catalogue: Catalogue, sides: Sides, items: Sequence[Tensor], given: Sequence[Tensor]
    ) -> None:
        self._catalogue, self._sides, self._given = catalogue, sides, list(given)
        self._layout = catalogue.original.layout
        self.candidates = catalogue.count(given)
        named = [f"items[{k}]" for k in range(len(items))]
        self._held = [*items, *(given[i] for i in sides.raw)]
        self._features = [
            *(Feature(n, t.dtype, tuple(t.shape), 0, "rows") for n, t in zip(named, items, strict=True)),
            *(catalogue.features[i] for i in sides.raw),
        ]
        # Rows are cut off one by one where each is scored by itself, all at once where they may see each other.
        cut = self._layout.independent and all(feature.role == "rows" for feature in self._features)
        self._step = _chunk(sides.score, self.candidates) if cut else self.candidates
        two = torch.zeros(2, dtype=torch.long)
        one = [given[i][:1] if i in catalogue.mixed else given[i] for i in sides.request]
        self._user = direct(sides.user, tuple(one))
        self._score = direct(sides.score, (*self._user(*one), *take_rows(self._features, self._held, two)))
        outputs: Any = sides.score.graph.output_node().args[0]
        sizes = [_bytes(node.meta["val"]) // node.meta["val"].element_size() for node in outputs]
        self._single = [
            axis is not None and size == 1 for axis, size in zip(self._layout.output_axes, sizes, strict=True)
        ]
        found: list[tuple[str, Tensor]] = []
        describe(self._layout.result([two] * len(sizes)), "output", found)
        self._names = [name for name, _ in found]
        self._rounding: list[float] = []

    @property
    def resident_bytes(self) -> int:
        """Bytes of the tensors kept for the catalogue: what was computed, and the candidates' features."""
        kept = [*self._held, *(self._given[i] for i in self._catalogue.candidates)]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in kept}.values())

    def __repr__(self) -> str:
        made = ", ".join(str(tuple(tensor.shape)) for tensor in self._held[: len(self._sides.axes)])
        return (
            f"Scorer({self.candidates:,} candidates, {self.resident_bytes / 2**20:,.1f} MiB kept: their features"
            f"{f' and {made}' if made else ''})"
        )

    def __call__(self, request: Any, rows: Tensor | Sequence[int]) -> Any:
        """The model's answer, in its own structure, for one request and these rows (n,) of the catalogue.

        Rows may repeat, in any order. Raises `IdOutOfRangeError` at a row that the catalogue does not have, naming its
        position, and `InputError` for a request that does not fit.
        """
        flat = self._catalogue.read_request(request)
        return self._layout.result(self._answer(flat, self._read_rows(rows)))

    def topk(
        self,
        request: Any,
        k: int,
        output: int | str | None = None,
        *,
        seen: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k best candidates of all: their scores (k,), best first, and their rows (k,).

        Exact: the rows are those that scoring the whole catalogue by the model itself would find best, equal scores by
        row. `output` names the output that holds one score per candidate where there are several such. `seen` are rows
        (s,) not to be given, -1 among them for none; where fewer than k are left, the last ones have row -1 and score -inf (of whole numbers,
        the least there is).

        Raises `InputError` for a request that does not fit, a k that is not from 1 to M, or an output that is not a
        score, and `IdOutOfRangeError` for seen rows that the catalogue does not have. Cost: what needs both sides, for M candidates, and two passes over the scores.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.candidates:
            raise InputError(f"k is a number from 1 to the {self.candidates:,} candidates, got {k!r:.80}")
        place = self._place(output)
        flat = self._catalogue.read_request(request)
        gone = None if seen is None else self._read_seen(seen)
        scores = self._scores(flat, place)
        within = 2 * self._rounding[place] if self._layout.independent else 0.0
        best, rows = best_unseen(scores, gone, k, within)
        if within and 1 < len(rows) <= _RESCORED and are_near(best, within):
            # Nearer than rounding: the model itself decides which comes first.
            rows = rows.sort().values
            order = self._rescored(flat, rows, place).sort(descending=True, stable=True)
            best, rows = order.values, rows[order.indices]
        return filled(best[:k], rows[:k], k)

    def agrees(self) -> bool:
        """Whether the answers are the model's, up to rounding, for the example's request and some candidates."""
        rows = torch.linspace(0, self.candidates - 1, min(self.candidates, _CHECKED)).long()
        if len(rows) in self._catalogue.exempt:
            rows = rows.repeat(2)
        flat = [t[:1] if i in self._catalogue.mixed else t for i, t in enumerate(self._given)]
        made, expected = self._answer(flat, rows), self._original(flat, rows)
        self._rounding = []
        for new, old in zip(made, expected, strict=True):
            if new.shape != old.shape or new.dtype != old.dtype:
                return False
            if not old.is_floating_point():
                self._rounding.append(0.0)
                if not torch.equal(new, old):
                    return False
                continue
            finite = old.isfinite()
            scale = float(old[finite].abs().max()) if bool(finite.any()) else 0.0
            if not torch.allclose(new, old, rtol=1e-4, atol=1e-5 * scale + 1e-30, equal_nan=True):
                return False
            off = float((new[finite] - old[finite]).abs().max()) if bool(finite.any()) else 0.0
            self._rounding.append(max(4 * off, 8 * torch.finfo(old.dtype).eps * scale))
        return True

    def _answer(self, flat: Sequence[Tensor], rows: Tensor) -> Sequence[Tensor]:
        """The flat outputs for some rows."""
        if len(rows) in self._catalogue.exempt:
            return self._original(flat, rows)
        if len(rows) == 0:
            # Some kernels refuse to work on nothing.
            some = self._run(flat, take_rows(self._features, self._held, rows.new_zeros(2)))
            return [
                tensor if axis is None else tensor.narrow(axis, 0, 0)
                for tensor, axis in zip(some, self._layout.output_axes, strict=True)
            ]
        return self._run(flat, take_rows(self._features, self._held, rows))

    def _run(self, flat: Sequence[Tensor], held: Sequence[Tensor]) -> Sequence[Tensor]:
        """The flat outputs for one request, and candidates as they are held."""
        user = self._user(*[flat[i] for i in self._sides.request])
        return self._score(*user, *self._merged(flat, held))

    def _merged(self, flat: Sequence[Tensor], held: Sequence[Tensor]) -> list[Tensor]:
        """The candidates' tensors, with the request's columns in the matrices that have some."""
        made = list(held)
        for place, index in enumerate(self._sides.raw, len(held) - len(self._sides.raw)):
            if index in self._catalogue.mixed:
                made[place] = self._catalogue.merged(index, flat[index], made[place].clone())
        return made

    def _original(self, flat: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """The model's own flat outputs."""
        return self._catalogue.original.answers(self._catalogue.together(flat, self._given, rows))

    def _rescored(self, flat: Sequence[Tensor], rows: Tensor, place: int) -> Tensor:
        """The model's own scores of some rows, with more rows behind them: kernels round the last few in another way."""
        padded = torch.cat([rows, rows[:1].expand(-len(rows) % _PADDED + _PADDED)])
        return self._original(flat, padded)[place].flatten()[: len(rows)]

    def _scores(self, flat: Sequence[Tensor], place: int) -> Tensor:
        """The scores (M,) of all candidates."""
        if self.candidates in self._catalogue.exempt:
            return self._original(flat, torch.arange(self.candidates))[place].flatten()
        # The least that torch does per kernel; nothing of it leaves as it is, as nobody could write to it.
        with torch.inference_mode():
            if self._step == self.candidates:
                return self._run(flat, self._held)[place].flatten()
            user = self._user(*[flat[i] for i in self._sides.request])
            parts = []
            for start in range(0, self.candidates, self._step):
                size = min(self._step, self.candidates - start)
                held = [
                    t.narrow(f.axis or 0, start, size)
                    for f, t in zip(self._features, self._held, strict=True)
                ]
                parts.append(self._score(*user, *self._merged(flat, held))[place].flatten())
            return torch.cat(parts)

    def _place(self, output: int | str | None) -> int:
        """The number of the output meant. Raises `InputError` unless it holds one score per candidate."""
        scores = [i for i, single in enumerate(self._single) if single]
        if output is None and len(scores) == 1:
            return scores[0]
        named = [i for i, name in enumerate(self._names) if output == i or output in (name, _short(name))]
        if len(named) == 1 and named[0] in scores:
            return named[0]
        able = ", ".join(f"{i} ({self._names[i]!r})" for i in scores)
        what = (
            "several outputs are scores"
            if output is None and scores
            else f"output {output!r:.80} is no score"
        )
        raise InputError(f"{what}: output={able or 'none'} holds one number per candidate.")

    def _read_rows(self, rows: Tensor | Sequence[int]) -> Tensor:
        found = _vector(rows, "rows")
        self._refuse_others(found, "rows", 0)
        return found

    def _read_seen(self, seen: Tensor | Sequence[int]) -> Tensor:
        """Rows that are left out; without what fills lists of different lengths."""
        found = _vector(seen, "seen")
        return found[found >= 0] if self._refuse_others(found, "seen", -1) < 0 else found

    def _refuse_others(self, found: Tensor, name: str, least: int) -> int:
        """The least of these rows. Raises `IdOutOfRangeError` at one that is below `least` or that the catalogue does not have."""
        low, high = extremes(found)
        if low < least or high >= self.candidates:
            place = int(((found < least) | (found >= self.candidates)).nonzero()[0])
            raise IdOutOfRangeError(
                f"{name}, position {place}: got {int(found[place])}, expected 0 <= row < {self.candidates:,}.",
                feature=name,
                row=place,
            )
        return low


def _vector(rows: Tensor | Sequence[int], name: str) -> Tensor:
    """Row numbers as a vector. Raises `InputError` for anything else."""
    try:
        found = torch.as_tensor(list(rows) if isinstance(rows, (set, frozenset)) else rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is a vector of row numbers, got {type(rows).__name__} {rows!r:.80}", feature=name
        ) from error
    if found.shape == (0,):
        found = found.long()
    if found.dim() != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputError(
            f"{name} is a vector of row numbers, got {found.dtype} of shape {tuple(found.shape)}",
            feature=name,
        )
    return found.long()


def _short(name: str) -> str:
    """An output's name without that of the answer."""
    return name.removeprefix("output").removeprefix(".")
