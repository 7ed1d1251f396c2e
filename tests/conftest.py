"""What tests of several files ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastrec import pipeline


@pytest.fixture(scope="module")
def served_anyway() -> Iterator[None]:
    """A session serves whatever the clock of a busy machine says, and little time is spent asking it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "share", lambda *_: 0.1)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: workers take files in this order, and none is to be left with it alone."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/techniques/test_contract.py"))
