"""What tests of several files ask for."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator

import pytest
from torch.onnx._internal.exporter import _registration

from fastrec import pipeline

# What is imported stays, and graphs are many small things: looking for circles among them took a seventh of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 50)

# Half a minute and more; those of few tests too, which are left for last where files are taken by their number of tests.
_LONG = (
    "tests/backends/test_contract.py",
    "tests/techniques/test_contract.py",
    "tests/generated/",
    "tests/techniques/fusion/test_padded_positions.py",
    "tests/test_pipeline.py",
    "tests/examples/test_one_thing.py",
    "tests/examples/test_whole_ways.py",
    "tests/docs/test_pages.py",
    "tests/backends/test_coded_rows.py",
    "tests/techniques/fusion/test_absorbed_attention.py",
    "tests/techniques/fusion/test_factored_products.py",
    "tests/techniques/fusion/test_masked_positions.py",
    "tests/techniques/fusion/test_one_position.py",
    "tests/techniques/pruning/test_heads.py",
    "tests/test_served_form.py",
)


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once() -> Iterator[None]:
    """The exporter to ONNX parses the source of each of its five hundred operators at every call, to the same end."""
    scripts = _registration.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        read = scripts.get_torchlib_ops
        patch.setattr(scripts, "get_torchlib_ops", functools.cache(lambda: read()))
        yield


@pytest.fixture(scope="module")
def served_anyway() -> Iterator[None]:
    """A session serves whatever the clock of a busy machine says, and little time is spent asking it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "share", lambda *_: 0.1)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: workers take files in this order, and none is to be left with one alone."""
    items.sort(key=lambda item: next((i for i, name in enumerate(_LONG) if item.nodeid.startswith(name)), 99))
