"""The fixture in test suites of other people, which pytest itself runs in temporary folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest_plugins = ("pytester",)

PLUGIN = ("-p", "fastrec.pytest_plugin", "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the plugins that are named, whether or not ours is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


# Calls of known cost on a clock of their own.
FAKES = """
    import pytest, random

    class Clock:
        now = 0
        def __call__(self):
            return self.now

    class Taking:
        def __init__(self, clock, seconds, noise=0.0):
            self.clock, self.seconds, self.rng, self.noise = clock, seconds, random.Random(1), noise
        def __call__(self, x):
            self.clock.now += round(self.seconds * 1e9 * (1 + self.noise * self.rng.random()))

    @pytest.fixture
    def guard(latency_guard):
        def run(name, factor, noise=0.0, **options):
            clock = Clock()
            before, after = Taking(clock, 0.001, noise), Taking(clock, 0.001 * factor, noise)
            return latency_guard(name, before, after, inputs=lambda i: i, clock=clock, **options)
        return run
"""


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makeconftest(FAKES)
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(*PLUGIN, *options)


def test_a_regression_fails_with_its_numbers(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_slower(guard):
            guard("ranker", 1.2)
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*guard(*ranker*, 1.2)",
            "*Failed: latency_guard 'ranker': regression",
            "*the candidate takes 1.200 [[]1.200, 1.200[]] times as long as the reference (n = 96 rounds), the whole*",
            "*median of 192 calls: reference 1.00 ms, candidate 1.20 ms",
            "*= latency guards =*",
            "*::test_slower [[]ranker[]] regression: the candidate takes 1.200*",
        ]
    )
    assert "importlib" not in result.stdout.str()


def test_what_is_no_slower_passes_and_what_is_not_known_is_told(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_equal(guard):
            assert guard("equal", 1.0).verdict == "passed"
        def test_at_the_margin(guard):
            gate = guard("close", 1.05, noise=0.3, seconds=0.5)
            assert gate.verdict == "inconclusive"
        """,
        "-W", "error",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*test_at_the_margin [[]close[]] inconclusive: *", "*test_equal [[]equal[]] passed: *"]
    )


def test_margin_and_seconds_come_from_the_call_the_command_line_and_the_ini_file(
    pytester: pytest.Pytester,
) -> None:
    source = """
        def test_margin(guard):
            gate = guard("a", 1.2)
            print("margin", gate.margin)
        def test_own(guard):
            assert guard("b", 1.2, margin=0.4).margin == 0.4
    """
    pytester.makeini("[pytest]\nlatency_margin = 0.3\nlatency_seconds = 2\n")
    run(pytester, source, "-s").assert_outcomes(passed=2)
    run(pytester, source, "--latency-margin", "0.1").assert_outcomes(passed=1, failed=1)
    pytester.makeini("[pytest]\nlatency_margin = much\n")
    wrong = run(pytester, source)
    wrong.assert_outcomes(errors=0, passed=1, failed=1)
    wrong.stdout.fnmatch_lines(["*latency_margin is 'much', expected a number above 0*"])
    refused = pytester.runpytest_inprocess(*PLUGIN, "--latency-seconds", "0")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR


def test_modules_are_called_with_their_batches_and_without_gradients(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import torch

        class Ranker(torch.nn.Module):
            def forward(self, user, item):
                assert not torch.is_grad_enabled() and user.shape == item.shape
                return self.score(user, item)
            def score(self, user, item):
                return (user * item).sum(-1)

        def test_forms(latency_guard):
            a, b = Ranker(), Ranker()
            x = torch.ones(2, 3)
            for batch in ((x, x), {"item": x, "user": x}):
                for inputs in (batch, [batch, batch], lambda i: batch):
                    latency_guard("forms", a, b, inputs=inputs, margin=9, seconds=0.01)
            latency_guard("bound", a.score, b.score, inputs=(x, x), margin=9, seconds=0.01)
            assert torch.is_grad_enabled()
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_benchmark_of_a_test_gets_the_numbers(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_benchmark")
    # Benchmarks are off in a worker of xdist, which the suite inside is not.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    source = """
        def test_both(benchmark, guard):
            benchmark(lambda: None)
            guard("ranker", 1.01)
    """
    options = (
        "-p",
        "pytest_benchmark.plugin",
        "--benchmark-min-rounds=1",
        "--benchmark-max-time=0.01",
        "--benchmark-json=found.json",
    )
    run(pytester, source, *options).assert_outcomes(passed=1)
    (found,) = json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    numbers = found["extra_info"]["latency[ranker]"]
    assert (
        numbers["verdict"] == "passed" and numbers["ratio"] == pytest.approx(1.01) and numbers["rounds"] == 96
    )


def test_junit_files_hold_the_verdict(pytester: pytest.Pytester) -> None:
    source = """
        def test_one(guard):
            guard("ranker", 1.01)
    """
    run(pytester, source, "--junitxml=found.xml").assert_outcomes(passed=1)
    assert (
        'name="latency[ranker]" value="passed: the candidate takes 1.010'
        in (pytester.path / "found.xml").read_text()
    )


def test_workers_send_theirs(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest(FAKES)
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("factor", [1.0, 1.2])
        def test_one(guard, factor):
            guard("ranker", factor)
        """
    )
    result = pytester.runpytest_subprocess(*PLUGIN, "-p", "xdist.plugin", "-n", "1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*test_one[[]1.0[]] [[]ranker[]] passed: *", "*test_one[[]1.2[]] [[]ranker[]] regression: *"]
    )


def test_whoever_does_not_use_it_does_not_pay(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_nothing_heavy():
            assert not {"torch", "numpy", "scipy", "fastrec.measure"} & set(sys.modules)
        """
    )
    result = pytester.runpytest_subprocess(*PLUGIN)
    result.assert_outcomes(passed=1)
    assert "latency guards" not in result.stdout.str()


def test_options_are_shown(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_inprocess(*PLUGIN, "--help").stdout.str()
    assert "--latency-margin=MARGIN" in text and "latency_seconds" in text


def test_the_package_names_it_to_pytest() -> None:
    written = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nfastrec = "fastrec.pytest_plugin"' in written
