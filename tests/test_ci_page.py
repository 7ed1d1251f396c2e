"""The page about CI: its table is what was measured, and its workflow runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate
from benchmarks.marks import put
from fastrec.measure import Gate, compare
from tests import pages

ROOT = pages.ROOT
PAGE = (ROOT / "docs" / "ci.md").read_text()
SERVED = """
import torch
import work

class Layer(torch.nn.Linear):
    def forward(self, x):
        work.clock.now += 1000
        return super().forward(x)

def make():
    return torch.nn.Sequential(*(Layer(32, 32) for _ in range({layers}))).eval()
"""
# The clock counts layers that were called, whatever else the machine does.
WORK = """
class Clock:
    now = 0

    def __call__(self):
        return self.now

clock = Clock()
"""
COUNTED = """
from functools import partial

import pytest
import work

@pytest.fixture
def latency_guard(latency_guard):
    return partial(latency_guard, clock=work.clock)
"""


def steps(workflow: str) -> list[str]:
    """The `run:` of each step of a workflow: on one line, or the deeper lines behind `|`."""
    lines, found = workflow.splitlines(), []
    for number, line in enumerate(lines):
        key = line.lstrip(" -")
        if not key.startswith("run: "):
            continue
        text = key.removeprefix("run: ")
        if text == "|":
            inner = len(line) - len(key) + 2
            block = []
            for below in lines[number + 1 :]:
                if len(below) - len(below.lstrip()) < inner:
                    break
                block.append(below[inner:])
            text = "\n".join(block)
        found.append(text)
    return found


def test_the_table_is_the_committed_result() -> None:
    (path,) = (ROOT / "benchmarks" / "results" / "gate").glob("*.json")
    run = gate.read(path)
    assert put(PAGE, "gate", gate.table(run)) == PAGE
    for call, change in {(one.call, one.change) for one in run.runs}:
        verdicts = [one.gate.verdict for one in run.runs if (one.call, one.change) == (call, change)]
        assert verdicts == [gate.EXPECTED[change]] * 20


@pytest.mark.parametrize(("head", "fails"), [(12, False), (36, True)])
def test_the_steps_of_the_workflow_run(head: int, fails: bool, tmp_path: Path) -> None:
    """All but the one that installs, which would ask the network for what is tested here, from this checkout."""
    yaml = PAGE.split("```yaml\n")[1].partition("```")[0]
    assert len(yaml.splitlines()) <= 25
    install, measure, show = steps(yaml)
    assert install == "python -m pip install fastrec pytest"
    code = pages.code("docs/ci.md", "importlib")
    for name, layers in (("base", 12), ("head", head)):
        (tmp_path / name / "bench").mkdir(parents=True)
        (tmp_path / name / "served.py").write_text(SERVED.format(layers=layers))
        (tmp_path / name / "bench" / "test_latency.py").write_text(code)
        (tmp_path / name / "bench" / "conftest.py").write_text(COUNTED)
    (tmp_path / "work.py").write_text(WORK)
    # The entry point is there once the package is installed; a checkout names the plugin.
    options = "-p fastrec.pytest_plugin -p no:cacheprovider"
    setting = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTEST_ADDOPTS": options,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = [
        subprocess.run(
            ["bash", "-euc", step.replace("python ", '"$PYTHON" ')],
            cwd=tmp_path, env=setting, capture_output=True, text=True, check=False,
        )
        for step in (measure, show)
    ]  # fmt: skip
    assert "latency guards" in done[0].stdout, done[0].stdout + done[0].stderr
    assert (done[0].returncode != 0) == fails
    assert 'name="latency[served]" value="' in done[1].stdout
    assert ("regression" in done[1].stdout) == fails


class Counted:
    """A model whose calls take so many ticks."""

    def __init__(self, ticks: int, clock: list[int]) -> None:
        self.ticks, self.clock = ticks, clock

    def __call__(self, batch: Any) -> None:
        self.clock[0] += self.ticks


@pytest.mark.parametrize(("ticks", "verdict"), [(900, "passed"), (1300, "regression")])
def test_the_first_test_of_the_page(ticks: int, verdict: str) -> None:
    test = pages.run("docs/ci.md", "test_serving_is_no_slower")["test_serving_is_no_slower"]
    clock, gates = [0], list[Gate]()

    def guard(name: str, reference: Any, candidate: Any, *, inputs: Any) -> None:
        """As the fixture, by a clock that is moved by calls alone."""
        gates.append(compare(reference, candidate, inputs, clock=lambda: clock[0]))

    test(guard, Counted(1000, clock), Counted(ticks, clock), [1, 2, 3])
    assert [gate.verdict for gate in gates] == [verdict]
