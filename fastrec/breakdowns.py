"""Where the time of a call goes before and after, at the middle one of the measured sizes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from .backends import Eager, Repeated
from .backends.common import is_reference
from .backends.eager import in_torch
from .journal import Journal
from .measure import Breakdown, breakdown
from .ops import INT4, INT8
from .plan import ORIGINAL, Batches
from .program import Program
from .quiet import reason_of
from .report import SizeResult
from .request import Once
from .sessions import Made

__all__ = ["set_aside", "where_time_goes"]

_MOST = 0.8  # seconds for each of the two
_SHARE = 0.02  # of the time that compiling and measuring may take
_LEAST = 0.1
_CALLS = 20  # fewest calls that tell anything, the graph's own and the whole alike
_FRESH = 1 << 21


def set_aside(work: Journal) -> float:
    """Seconds to keep for this of what compiling and measuring may take; 0 where that is little."""
    each = min(_MOST, _SHARE * work.allowed)
    return 2 * each if each >= _LEAST else 0.0


def where_time_goes(
    work: Journal,
    original: Program,
    captured: Program | None,
    once: Once,
    sessions: Mapping[str, Made],
    results: Sequence[SizeResult],
    fresh: Batches,
) -> tuple[Breakdown, ...]:
    """The parts of a call of the original, and of what serves in its stead where it was captured.

    What serves in another library is taken apart as its graph in torch, and labelled so. Nothing is measured where the time is
    short or a call takes long, and of what serves nothing where torch runs it by reference operators, which are slow.
    """
    spend = set_aside(work) / 2
    late = time.perf_counter() + spend > work.deadline
    if captured is None or not isinstance(captured.model, fx.GraphModule) or not results or late:
        return ()
    middle = results[len(results) // 2]
    if not spend or _CALLS * middle.before.p50 > spend:
        return ()

    try:
        return _both(original, captured.model, once, sessions, middle, fresh, spend)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model serves all the same
        work.notes.append(f"where the time goes was not measured: {reason_of(error)}")
        return ()


def _both(
    original: Program,
    captured: fx.GraphModule,
    once: Once,
    sessions: Mapping[str, Made],
    middle: SizeResult,
    fresh: Batches,
    seconds: float,
) -> tuple[Breakdown, ...]:
    """The original's parts, and those of what serves where that can be taken apart."""

    def flat(index: int) -> list[Tensor]:
        return fresh(middle.rows, _FRESH + index)

    private = original.private(buffers=False)
    found = [breakdown(captured, flat, private.called, label=ORIGINAL, rows=middle.rows, seconds=seconds)]
    made = sessions.get(middle.session)
    graph = None if made is None else _graph(made)
    if made is None or graph is None:
        return tuple(found)
    whole = isinstance(made.session, Repeated)
    session = Eager().compile(made.program)
    eager = middle.session.partition(",")[0].partition(" ")[0] == Eager.name
    found.append(
        breakdown(
            graph,
            lambda index: flat(index) if whole else once.first(flat(index)),
            lambda tensors: session(*tensors),
            label=middle.session if eager else f"{middle.session}: its graph in torch",
            rows=middle.rows,
            seconds=seconds,
        )
    )
    return tuple(found)


def _graph(made: Made) -> fx.GraphModule | None:
    """What serves as torch runs it; None where that says nothing of it."""
    if not isinstance(made.program.model, fx.GraphModule):
        return None
    graph = in_torch(made.program)
    slow = any(is_reference(node) and node.target not in (INT8, INT4) for node in graph.graph.nodes)
    return None if slow else graph
