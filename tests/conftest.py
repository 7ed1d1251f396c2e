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
