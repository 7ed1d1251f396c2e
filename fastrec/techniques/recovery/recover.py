"""Learn back what approximating moved: distillation from the original, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.func import functional_call

from ...earlier import set_origin
from ...errors import InputError
from ...graph import constant, copy_graph, is_call
from ...program import Program
from ...progress import tell
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.id_columns import identity
from ..fusion.purity import writes
from ..reads import find_tables
from ..settings import check_above, check_whole
from ..traffic import batches_of
from .losses import answers_of, off
from .training import Kept, Loss, Run, digest_of

__all__ = ["Recover"]

RULE = "recover"
_META = "recovered"
_HELD = 4
_SHORTER = 0.1
aten = torch.ops.aten


@dataclass(frozen=True)
class Recover(Technique):
    """Bring the answers of an approximated model back towards those of the original, by training on its answers.

        w  <-  w - lr d/dw  sum over calibration rows of  off(f_w(x), f(x))          f the model as it was

    w are the weights and biases of maps, convolutions and norms; tables stay as they are. No labels are read, and the original
    is not touched. `steps` batches of the calibration are run, in an order drawn with `seed`, every fourth of them kept out: the
    weights that are nearest on those serve. Where none is nearer than before, it is tried once more at a tenth of the rate, and then
    nothing changes. Put it behind what prunes and
    in front of `Fuse` and what quantizes: a technique in front of it is judged by what it is after recovery.

    In `folder`, where one is given, the state is kept ten times a run, in a file named by what is learned from what: a run that
    was killed goes on from there, and ends as it would have. Same settings and seed, same result, on the same machine.

    Raises `InputError` for other settings and, before it trains, for a folder that no file can be written in, `TechniqueError` for a
    model that was not captured. Cost: `steps` runs of a batch and their gradients.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, equation 2, at temperature 1.

    Example:
        >>> Recover(steps=500).exact, Recover.ladder()
        (False, (Recover(steps=300, lr=0.001, seed=0, folder=None),))
    """

    name: ClassVar[str] = "recover"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    mends: ClassVar[bool] = True

    steps: int = 300
    lr: float = 1e-3
    seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        check_whole(self, "steps", least=1)
        check_whole(self, "seed")
        check_above(self, "lr")
        if self.folder is not None and not isinstance(self.folder, str):
            raise InputError(f"Recover(folder=...) takes the path of a folder, got {self.folder!r:.80}")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with weights that answer more like the original; the program's own where none do."""
        gm = graph_of(program, self)
        reason = self._refusal(gm, program.origin)
        if reason:
            return Applied(gm, skipped=(Skip(RULE, "", reason),))
        assert isinstance(program.origin, fx.GraphModule)
        if self.folder is not None:
            _check_folder(self.folder)
        student = copy_graph(gm)
        with torch.random.fork_rng(devices=()):
            found = self._learn(student, program.origin, batches_of(program))
        if isinstance(found, str):
            return Applied(gm, skipped=(Skip(RULE, "", found),))
        student.meta[_META] = True
        return Applied(student, (found,))

    def _refusal(self, gm: fx.GraphModule, origin: Any) -> str:
        """Why nothing is to be learned, or nothing."""
        if not isinstance(origin, fx.GraphModule) or origin is gm:
            return "nothing was approximated: there is nothing to recover"
        if gm.meta.get(_META):
            return "it is recovered already"
        return "the graph writes in place: it has no gradient" if writes(gm) else ""

    def _learn(
        self, student: fx.GraphModule, origin: fx.GraphModule, batches: Sequence[Sequence[Tensor]]
    ) -> Change | str:
        """Trains the constants of `student`, in place of what they were; or why not."""
        names = _trained(student)
        start = {group[0]: attrgetter(group[0])(student).detach() for group in names}
        with torch.no_grad():
            told = [[answer.detach() for answer in origin(*batch)] for batch in batches]
        answers = answers_of(student, told)
        if not start or not answers:
            return "no weight of it bears on an answer that is a number"
        if not all(bool(answer.isfinite().all()) for batch in told for answer in batch):
            return "the original's answers to the calibration are not all finite"

        def loss(tensors: Any, batch: int) -> Tensor:
            held = {name: tensors[group[0]] for group in names for name in group}
            return off(answers, functional_call(student, held, tuple(batches[batch])), told[batch])

        reason = _without_slope(loss, start)
        if reason:
            return reason
        order, held = self._order(len(batches))
        run = self._run(self.lr, start, told, loss, order, held)
        if not run.lowest < run.first:
            # What is near already is passed by with long steps.
            run = self._run(self.lr * _SHORTER, start, told, loss, order, held)
        if not run.lowest < run.first:
            return f"no step came nearer to the original than {run.first:.3g} on batches that were kept out"
        for group in names:
            for name in group:
                _put(student, name, run.best[group[0]])
        added = sum(tensor.nbytes for tensor in run.best.values())
        detail = f"{self.steps} steps: off by {run.lowest:.3g} in place of {run.first:.3g} on batches that were kept out"
        return Change(RULE, "", detail, added)

    def _run(
        self,
        lr: float,
        start: dict[str, Tensor],
        told: Sequence[Sequence[Tensor]],
        loss: Loss,
        order: Sequence[int],
        held: Sequence[int],
    ) -> Run:
        """A run at this rate, from where it was kept."""
        run = Run.begin(start, self.steps, lr)
        kept = self._kept(lr, start, told)
        if kept is not None:
            kept.read(run)

        def seen(run: Run) -> None:
            tell(f"recover: step {run.done:,} of {self.steps:,}, off by {run.lowest:.3g}")
            if kept is not None:
                kept.write(run)

        run.go(loss, order, held, seen)
        return run

    def _order(self, batches: int) -> tuple[list[int], list[int]]:
        """The batch of each step, and those that are kept out; all are both where there are fewer than four."""
        few = batches < _HELD
        held = [index for index in range(batches) if few or index % _HELD == _HELD - 1]
        learned = [index for index in range(batches) if few or index % _HELD != _HELD - 1]
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        while len(order) < self.steps:
            order += [learned[index] for index in torch.randperm(len(learned), generator=generator).tolist()]
        return order, held

    def _kept(self, lr: float, start: dict[str, Tensor], told: Sequence[Sequence[Tensor]]) -> Kept | None:
        if self.folder is None:
            return None
        settings = f"{self.steps} {lr} {self.seed} {sorted(start)}"
        digest = digest_of(settings, *start.values(), *(answer for batch in told for answer in batch))
        return Kept(Path(self.folder) / f"recover-{digest}.safetensors")


def _check_folder(folder: str) -> None:
    """Makes a folder, and raises `InputError` where no file can be written in it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"Recover(folder=...) has {folder!r}, in which no file can be written ({error!s:.200}): give a folder that is yours to "
            "write in, or None to keep nothing"
        ) from error


def _trained(gm: fx.GraphModule) -> list[list[str]]:
    """The float32 constants to train, those of one memory together: no tables, no statistics."""
    apart = {identity(table.tensor) for table in find_tables(gm)}
    groups: dict[Any, list[str]] = {}
    for node in gm.graph.nodes:
        tensor = constant(gm, node)
        if tensor is None or tensor.dtype is not torch.float32:
            continue
        statistics = any(
            is_call(user, aten.batch_norm.default) and node in user.args[3:5] for user in node.users
        )
        if statistics:
            apart.add(identity(tensor))
        names = groups.setdefault(identity(tensor), [])
        if str(node.target) not in names:
            names.append(str(node.target))
    return [names for key, names in groups.items() if key not in apart]


def _without_slope(loss: Any, start: dict[str, Tensor]) -> str:
    """Why there is no gradient to follow, or nothing."""
    leaves = {name: held.clone().requires_grad_() for name, held in start.items()}
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(loss(leaves, 0), list(leaves.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:  # how operators say that they have no derivative
        return f"it has no gradient: put Recover before Fuse and what quantizes ({error!s:.120})"
    return "" if any(slope is not None for slope in found) else "no weight of it bears on its answers"


def _put(gm: fx.GraphModule, name: str, tensor: Tensor) -> None:
    """A constant in place of another."""
    path, _, last = name.rpartition(".")
    owner = gm.get_submodule(path)
    owner._parameters.pop(last, None)
    owner._buffers[last] = tensor.detach()
    set_origin(gm, name, None)
