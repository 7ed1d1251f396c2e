"""fastrec as one more way to serve a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

import fastrec
from fastrec.backends.base import Session
from fastrec.program import Program
from fastrec.techniques import CastLinears, Fuse, QuantizeLinears, QuantizeTables, Technique

from .models import Batch
from .peers import Call, Work

__all__ = ["Served", "prepare"]


@dataclass(frozen=True)
class Served:
    """A compressed model as a call, the name of the session it chose for each size, and those sessions bare.

    `bare[rows]` is the session that serves `rows` rows without the wrapper's guards and conversions. Sessions take flat
    tensors, which is what a case's batch is; where request features were declared, the batch that gives them once.
    `program` is what the sessions were compiled from, None where the original serves.
    """

    call: Call
    chosen: Mapping[int, str]
    bare: Mapping[int, Call]
    program: Program | None


INT8 = (QuantizeTables(), QuantizeLinears())
BF16 = (CastLinears(),)


def prepare(work: Work, sizes: Sequence[int], int8: bool = False, bf16: bool = False) -> Served:
    """Compress a private copy of the case's model for `sizes`, exactly, in `int8` or in `bf16`, all else left at its default.

    Request features are declared where the case has any.
    """
    rounded: tuple[Technique, ...] = (*(INT8 if int8 else ()), *(BF16 if bf16 else ()))
    fast = fastrec.compress(
        work.model(),
        work.example,
        request_features=work.case.request or None,
        calibration=work.calibration if int8 else None,
        recipe=(Fuse(), *rounded) if rounded else None,
        batch_sizes=tuple(sizes),
        progress=False,
    )

    def call(batch: Batch) -> Tensor:
        return cast("Tensor", fast(*batch))

    def bare(session: Session) -> Call:
        return lambda batch: session(*batch)[0]

    return Served(
        call,
        {size.rows: size.session for size in fast.report.sizes},
        {rows: bare(fast.session(rows)) for rows in sizes},
        fast.program,
    )
