"""An approximate recipe: its sessions follow its own numbers, rows stay apart, and exact forms compete with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import fastrec
from fastrec import compress
from fastrec.backends import Eager, Session
from fastrec.graph import add_constant, constant, copy_graph, is_call, sweep
from fastrec.program import Program
from fastrec.techniques import Applied, Change, Fuse, Technique

aten = torch.ops.aten


@dataclass(frozen=True)
class Round(Technique):
    """Weights of linear layers to so many decimals."""

    name: ClassVar[str] = "round"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    decimals: int = 2

    @property
    def exact(self) -> bool:
        return False

    def apply(self, program: Program) -> Applied:
        assert isinstance(program.model, torch.fx.GraphModule)
        gm, changes = copy_graph(program.model), []
        for node in list(gm.graph.nodes):
            weight = constant(gm, node.args[1]) if is_call(node, aten.linear.default) else None
            if weight is not None:
                rounded = add_constant(gm, "rounded", weight.round(decimals=self.decimals))
                node.args = (node.args[0], rounded, *node.args[2:])
                changes.append(Change("round", node.name))
        sweep(gm)
        return Applied(gm, tuple(changes))


@dataclass(frozen=True)
class Off(Eager):
    """Answers off by what no plain form would explain."""

    name: ClassVar[str] = "off"

    by: float = 0.5

    def compile(self, program: Program) -> Session:
        right, by = super().compile(program), self.by

        class Wrong(Session):
            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                return tuple(answer + by for answer in right(*tensors))

        return Wrong()


@dataclass(frozen=True)
class Dynamic(Eager):
    """Scales by the largest number of the whole batch before rounding."""

    name: ClassVar[str] = "dynamic"

    def compile(self, program: Program) -> Session:
        right = super().compile(program)

        class Scaled(Session):
            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                step = tensors[0].abs().max().clamp(min=1e-6) / 127
                return right((tensors[0] / step).round() * step, *tensors[1:])

        return Scaled()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def run(*backends: Eager) -> fastrec.CompressedModel:
    batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return compress(
        model(),
        batch,
        recipe=(Fuse(), Round()),
        backends=backends,
        batch_sizes=(4,),
        seconds=5,
        progress=False,
    )


def test_the_exact_form_competes_and_the_difference_is_that_of_who_serves() -> None:
    report = run(Eager()).report
    assert {trial.session for trial in report.trials} == {"eager", "eager, exact"}
    assert [step.exact for step in report.steps] == [True, False]
    if report.status == "improved":
        assert report.fidelity is not None
        assert report.fidelity.exact == report.sizes[0].session.endswith("exact")


def test_a_session_that_strays_from_the_plain_form_does_not_serve() -> None:
    reasons = {trial.session: trial.reason for trial in run(Off()).report.trials}
    assert "from the plain form's by 0.5" in reasons["off"]
    assert "from the original's by 0.5" in reasons["off, exact"]


def test_a_row_whose_answer_depends_on_its_neighbours_does_not_serve() -> None:
    reasons = {trial.session: trial.reason for trial in run(Dynamic()).report.trials}
    assert "depends on its neighbours" in reasons["dynamic"] or "plain form" in reasons["dynamic"]
    assert "differ" in reasons["dynamic, exact"]
