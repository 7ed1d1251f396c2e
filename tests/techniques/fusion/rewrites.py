"""What the tests of rules share: a model's graph, and the answer of a rewritten one against float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.declared import Declared, read_request
from fastrec.graph import copy_graph, is_call, sweep
from fastrec.program import Program
from fastrec.request import Once, ask
from fastrec.techniques.base import Change
from fastrec.techniques.fusion import PHASES, Fuse, Rule
from fastrec.techniques.fusion.no_ops import remove_no_ops


def graph_of(model: nn.Module, *batch: Tensor) -> fx.GraphModule:
    """The captured graph of a model in evaluation mode."""
    graph = capture(Program.read(model.eval(), batch)).model
    assert isinstance(graph, fx.GraphModule)
    return graph


def count(graph: fx.GraphModule, *targets: object) -> int:
    """How many nodes call one of the targets."""
    return sum(is_call(node, *targets) for node in graph.graph.nodes)


def rewritten(
    rule: Rule, model: nn.Module, *batch: Tensor, rows: tuple[int, ...] = (1, 2, 33)
) -> tuple[fx.GraphModule, list[Change]]:
    """The graph after the rule, checked against a float64 run of the model at several numbers of rows.

    The graph the rule was not given stays as it was; a graph it did not change it reports as unchanged.
    """
    before = graph_of(model, *batch)
    if rule is not remove_no_ops:
        # Slices of everything stand between the operators of interest.
        remove_no_ops(before)
        sweep(before)
    code = str(before.graph)
    after = copy_graph(before)
    changes = rule(after)
    sweep(after)
    assert str(before.graph) == code
    wide = copy.deepcopy(model).double()
    for size in rows:
        some = tuple(tensor[torch.arange(size) % len(tensor)] for tensor in batch)
        with torch.no_grad():
            exact = wide(*[tensor.double() if tensor.is_floating_point() else tensor for tensor in some])
            got, old = after(*some), before(*some)
        exact = exact if isinstance(exact, tuple) else (exact,)
        for new, right, was in zip(got, exact, old, strict=True):
            assert new.shape == was.shape and new.dtype == was.dtype
            torch.testing.assert_close(new.double(), right.double(), rtol=1e-5, atol=1e-5)
    if not changes:
        assert len(after.graph.nodes) == len(before.graph.nodes)
    return after, changes


def asked_program(model: nn.Module, declared: Declared, *batch: Tensor) -> tuple[Program, Once]:
    """The captured program of one request, of which the declared features have one row."""
    captured = capture(Program.read(model.eval(), batch))
    features = read_request(captured.layout.features, declared)
    return ask(replace(captured, layout=replace(captured.layout, features=features))), Once(features)


def asked_graph(model: nn.Module, declared: Declared, *batch: Tensor) -> tuple[fx.GraphModule, Once]:
    """The graph of that program after the first phase of rules."""
    program, once = asked_program(model, declared, *batch)
    graph = Fuse(rules=tuple(rule.__name__ for rule in PHASES[0])).apply(program).model
    assert isinstance(graph, fx.GraphModule)
    return graph, once


def rewritten_request(
    rules: Sequence[Rule],
    model: nn.Module,
    declared: Declared,
    *batch: Tensor,
    rows: tuple[int, ...] = (1, 2, 33),
) -> tuple[fx.GraphModule, list[Change]]:
    """The graph of one request after these rules, checked against a float64 run of the model on repeated rows."""
    before, once = asked_graph(model, declared, *batch)
    after = copy_graph(before)
    changes: list[Change] = []
    for rule in rules:
        changes += rule(after)
        sweep(after)
    wide = copy.deepcopy(model).double()
    for size in rows:
        some = once.same([tensor[torch.arange(size) % len(tensor)] for tensor in batch])
        with torch.no_grad():
            exact = wide(*[tensor.double() if tensor.is_floating_point() else tensor for tensor in some])
            got, old = after(*once.one(some)), model(*some)
        exact = exact if isinstance(exact, tuple) else (exact,)
        old = old if isinstance(old, tuple) else (old,)
        for new, was, right in zip(got, old, exact, strict=True):
            assert new.shape == right.shape
            # What the original's own rounding is, some layers (a norm of nearly equal numbers) make of any rounding.
            rounding = float((was.double() - right.double()).abs().max()) if right.numel() else 0.0
            torch.testing.assert_close(new.double(), right.double(), rtol=1e-5, atol=1e-5 + 8 * rounding)
    return after, changes
