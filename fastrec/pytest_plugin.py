"""pytest: the fixture `latency_guard`, which fails a test whose candidate is slower than its reference.

    def test_serving_is_no_slower(latency_guard):
        latency_guard("ranker", model, fast, inputs=batches)

Both take turns in this one process (`fastrec.measure.gate`): nothing is compared with a number of another day or machine. "regression"
fails the test; "inconclusive" does not, and stands in the summary at the end with all others. Until the fixture
is used nothing but pytest is imported.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from .measure.gate import Gate

__all__ = ["LatencyGuard", "latency_guard"]

_PROPERTY = "latency"
_DEFAULTS = {"margin": "0.05", "seconds": "10"}
_SAID = {
    "margin": "how much slower than its reference a candidate of latency_guard may be, as a share",
    "seconds": "seconds that each latency_guard may take while it is inconclusive",
}
_COLOURS = {"passed": {"green": True}, "regression": {"red": True}, "inconclusive": {"yellow": True}}


class LatencyGuard(Protocol):
    """What the fixture gives."""

    def __call__(
        self,
        name: str,
        reference: Callable[..., Any],
        candidate: Callable[..., Any],
        *,
        inputs: Any,
        margin: float | None = None,
        seconds: float | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> Gate:
        """Fail the test where `candidate` takes more than `1 + margin` times as long as `reference`.

        Both are modules (called without gradients), methods of them, or any callables. `inputs` is a list of batches, a
        callable that makes the i-th one, or one batch; each is given as the model takes it: a tuple by position, a dict by
        name. `margin` and `seconds` are those of the command line, or of the ini file, unless given. Returns the
        `fastrec.measure.Gate`. Errors of a call pass through.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options `--latency-margin` and `--latency-seconds`, and the same in the ini file."""
    group = parser.getgroup("fastrec", "latency of models")
    for name, default in _DEFAULTS.items():
        said = f"{_SAID[name]} (default {default})"
        group.addoption(f"--latency-{name}", type=_positive, default=None, metavar=name.upper(), help=said)
        parser.addini(f"latency_{name}", said, default=default)


@pytest.fixture
def latency_guard(request: pytest.FixtureRequest) -> LatencyGuard:
    """Compares two callables that take turns, and fails the test where the second is slower by more than the margin."""
    config = request.config

    def guard(
        name: str,
        reference: Callable[..., Any],
        candidate: Callable[..., Any],
        *,
        inputs: Any,
        margin: float | None = None,
        seconds: float | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> Gate:
        __tracebackhide__ = True
        # By name, as it brings torch: whoever only has the package installed does not wait for it.
        compare = importlib.import_module("fastrec.measure.gate").compare
        gate: Gate = compare(
            reference,
            candidate,
            inputs,
            margin=_setting(config, "margin") if margin is None else margin,
            seconds=_setting(config, "seconds") if seconds is None else seconds,
            clock=clock,
        )
        request.node.user_properties.append((f"{_PROPERTY}[{name}]", str(gate)))
        if "benchmark" in request.fixturenames:
            request.getfixturevalue("benchmark").extra_info[f"{_PROPERTY}[{name}]"] = gate.numbers
        if gate.verdict == "regression":
            pytest.fail("\n  ".join((f"latency_guard {name!r}: {gate.lines[0]}", *gate.lines[1:])))
        return gate

    return guard


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each guard: workers send theirs with the reports of their tests."""
    found: set[tuple[str, str, str]] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name.startswith(f"{_PROPERTY}["):
                    found.add((report.nodeid, name, str(value)))
    if not found:
        return
    terminalreporter.section("latency guards")
    for nodeid, name, text in sorted(found):
        colour = _COLOURS.get(text.partition(":")[0], {})
        terminalreporter.line(f"{nodeid} {name.removeprefix(_PROPERTY)} {text}", **colour)


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def _setting(config: pytest.Config, name: str) -> float:
    given = config.getoption(f"latency_{name}")
    if given is not None:
        return float(given)
    text = str(config.getini(f"latency_{name}"))
    try:
        return _positive(text)
    except ValueError as error:
        raise pytest.UsageError(
            f"ini option latency_{name} is {text!r}, expected a number above 0"
        ) from error
