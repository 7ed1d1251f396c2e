"""Exporters and compilers without their chatter, one at a time, and their errors in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator

__all__ = ["COMPILING", "quiet", "reason_of"]

# Exporters and compilers keep global caches and settings: one at a time.
COMPILING = threading.RLock()

_LOGGERS = (
    "onnxscript",
    "onnxscript.optimizer._constant_folding",
    "torch.onnx",
    "torch.export",
    "torch._inductor",
    "torch._dynamo",
    "torch.fx",
    "torch._subclasses",
)
_NOISE = re.compile(
    r"^(Failed to|<class|⬆|##|={3,}|-{3,}|\[\d|Traceback|While executing|Original traceback|set TORCH|from user code)"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporters and compilers, one caller at a time; levels and filters are put back after."""
    with COMPILING:
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            # Exporters print the graphs they fail on.
            nowhere = io.StringIO()
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def reason_of(error: BaseException) -> str:
    """The first telling line of an error, without colours, graph dumps or stack traces."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = (line.strip() for line in text.splitlines())
    telling = next((line for line in lines if line and not _NOISE.match(line)), "")
    return f"{type(error).__name__}: {telling[:200]}" if telling else type(error).__name__
