"""A line that says what takes long."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator

__all__ = ["Stages", "stages", "tell"]

Stages = Callable[[str], None]

_SHOWN: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("fastrec_shown", default=None)


def tell(text: str) -> None:
    """Names what is under way, for whoever does not know where it is shown; nothing where it is not."""
    show = _SHOWN.get()
    if show is not None:
        show(text)


@contextlib.contextmanager
def stages(show: bool) -> Iterator[Stages]:
    """A function that names the stage now under way, on standard error if it is a terminal; gone afterwards."""
    if not show or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(text: str) -> None:
            bar.update(task, description=text)

        token = _SHOWN.set(update)
        try:
            yield update
        finally:
            _SHOWN.reset(token)
