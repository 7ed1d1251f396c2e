"""Which columns of which linear maps are computed from which unit, found by marks that arithmetic carries along.

NaN in the place of unit j of a linear map's output taints what is computed from that unit and nothing else: pointwise
functions, joins, residual sums and reshapes keep it in its column; a norm, a softmax or a product over the columns taints all
of them. Every other linear map gives what it gave without marks, so that they end where the next one reads them. With
each unit marked by the bits of its number, and once by their complement, W units take 2 ceil(log2 W) + 1 runs, and a
column that two units reach is tainted in both runs of a bit. A model that asks whether its hidden values are finite, or
branches on them, goes another way with marks: that is seen, and its units stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...program import Program
from ...quiet import reason_of
from ...trees import Tree

__all__ = ["Marks", "Reach"]

Reach = dict[str, Tensor]
"""By the path of a module, the columns (W, k) of its input that each of W units reaches."""


class _Lost(Exception):
    """Marks that say nothing, with the reason."""


@dataclass
class _Call:
    shape: torch.Size
    output: Tensor


@dataclass
class _Tape:
    """One run of the model: what is recorded, or, played again, where the marks of one map's units are seen."""

    site: str = ""
    units: Tensor | None = None
    known: dict[str, list[_Call]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def linear(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        """A call of a linear map: x (..., I) -> y (..., O)."""
        index = self.calls[name]
        self.calls[name] += 1
        if self.units is None:
            if not bool(x.isfinite().all()):
                raise _Lost(f"values that are not finite reach {name} on the example")
            y = functional.linear(x, linear.weight, linear.bias)
            self.known[name].append(_Call(x.shape, y.detach().clone()))
            return y
        known = self.known.get(name, [])
        if index >= len(known) or x.shape != known[index].shape:
            raise _Lost(f"with marks in its units, the model calls {name} otherwise")
        self.see(name, x, -1)
        # A copy: what follows may write to it.
        y = known[index].output.clone()
        if name == self.site:
            y[..., self.units] = torch.nan
        return y

    def see(self, name: str, x: Tensor, axis: int) -> None:
        """Notes the channels of x along `axis` that are tainted."""
        if self.units is None or not x.numel() or x.dim() <= axis:
            return
        marks = x.movedim(axis, 0).flatten(1).isnan().any(1) if x.dim() > 1 else x.isnan()
        before = self.seen.setdefault(name, marks)
        if not torch.equal(before, marks):
            raise _Lost(f"{name} is called on its units and on something else")


class _Marked(nn.Linear):
    """A linear map that asks the tape what to give."""

    marked: Callable[[nn.Linear, Tensor], Tensor]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what nn.Linear calls it
        return self.marked(self, input)


class Marks:
    """Runs a model on one batch, with marks in the units of the linear map that is asked for.

    `linears` are the paths of the maps where marks end, as each gives what it gave. Modules beside them that have a
    parameter for each channel (`BatchNorm1d`, `PReLU`) are looked at as they are called.
    """

    def __init__(self, program: Program, linears: Iterable[str], batch: Sequence[Tensor]) -> None:
        model = program.draft(private_buffers=True).eval()
        self._program = program.with_model(model)
        self._batch = list(batch)
        modules = dict(model.named_modules())
        for name in linears:
            modules[name].__class__ = _Marked
            modules[name].__dict__["marked"] = partial(self._call, name)
        for name, module in modules.items():
            if type(module) in (nn.BatchNorm1d, nn.PReLU):
                module.register_forward_pre_hook(partial(self._see, name))
        self._widths = {name: int(modules[name].out_features) for name in linears}
        self._tape = _Tape()
        self.lost = ""
        try:
            self._answers, self._tree = self._run()
        except _Lost as lost:
            self.lost = str(lost)
        self._known = self._tape.known

    def reach(self, site: str) -> Reach | str:
        """The columns that each unit of a linear map reaches, or why its units cannot be told apart in them."""
        if self.lost:
            return self.lost
        width = self._widths[site]
        if site not in self._known:
            return "the example does not reach it"
        numbers = torch.arange(width)
        bits = torch.arange(max(1, (width - 1).bit_length()))
        try:
            all_of_them = self._play(site, numbers >= 0)
            reached = {
                name: marks.nonzero().flatten() for name, marks in all_of_them.items() if bool(marks.any())
            }
            if not reached:
                raise _Lost("no linear map that can be cut reads its units")
            ones, zeros = (
                [self._play(site, (numbers >> bit) & 1 == value) for bit in bits] for value in (1, 0)
            )
            if any(seen.keys() != all_of_them.keys() for seen in (*ones, *zeros)):
                raise _Lost("with marks in its units, the model calls other modules")
            return {
                name: _columns(
                    name,
                    at,
                    torch.stack([seen[name][at] for seen in ones]),
                    torch.stack([seen[name][at] for seen in zeros]),
                    width,
                )
                for name, at in reached.items()
            }
        except _Lost as lost:
            return str(lost)

    def remembers(self) -> bool:
        """Whether the model answers otherwise than before it was given marks."""
        self._tape = _Tape()
        try:
            answers, tree = self._run()
        except _Lost:
            return True
        return self._other(answers, tree)

    def _play(self, site: str, units: Tensor) -> dict[str, Tensor]:
        """The tainted channels of each module's input, with marks in these units."""
        self._tape = _Tape(site, units, self._known)
        answers, tree = self._run()
        if any(self._tape.calls[name] != len(calls) for name, calls in self._known.items()):
            raise _Lost("with marks in its units, the model calls other linear maps")
        if self._other(answers, tree):
            raise _Lost("the answer depends on its units by more than linear maps that can be cut")
        return self._tape.seen

    def _run(self) -> tuple[list[Tensor], Tree]:
        with torch.random.fork_rng(devices=()):
            try:
                return self._program.run([tensor.clone() for tensor in self._batch])
            except _Lost:
                raise
            except (
                Exception
            ) as error:  # whatever a stranger's model raises at marks, it is no failure of ours
                how = "on some rows of the example" if self._tape.units is None else "with marks in its units"
                raise _Lost(f"the model fails {how}: {reason_of(error)}") from error

    def _other(self, answers: Sequence[Tensor], tree: Tree) -> bool:
        """Whether this is another answer than without marks."""
        if tree != self._tree:
            return True
        pairs = zip(answers, self._answers, strict=True)
        return any(not _same(new, old) for new, old in pairs)

    def _call(self, name: str, linear: nn.Linear, x: Tensor) -> Tensor:
        return self._tape.linear(name, linear, x)

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            self._tape.see(name, x, 1)


def _same(new: Tensor, old: Tensor) -> bool:
    """Bit for bit, NaN among them."""
    if new.shape != old.shape or new.dtype != old.dtype:
        return False
    return bool((new == old).logical_or((new != new) & (old != old)).all())


def _columns(name: str, at: Tensor, ones: Tensor, zeros: Tensor, width: int) -> Tensor:
    """The columns (W, k) that each unit reaches, of those tainted (n,), given which bits (bits, n) taint each."""
    if not bool((ones ^ zeros).all()):
        raise _Lost(f"several of its units are mixed in one column of what {name} reads")
    place = torch.arange(len(ones))[:, None]
    unit = (ones.long() << place).sum(0)
    counts = unit.bincount(minlength=width)
    if len(counts) > width or not bool((counts == counts[0]).all()):
        raise _Lost(f"{name} reads only some of its units, or some more often than others")
    return at[unit.argsort(stable=True)].reshape(width, -1)
