"""The command line: compress, benchmark, compare, inspect, verify, report and export, each as words or as one JSON object.

Nothing heavy is imported before a command needs it: `fastrec --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command that the process was started with, and ends the process."""
    if "--json" in sys.argv[1:]:
        _keep_apart()
    try:
        # Loaded here: typer is an extra.
        app = importlib.import_module(".app", __name__).app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "click"):
            raise
        sys.stderr.write('the command line needs typer, which is not installed: pip install "fastrec[cli]"\n')
        sys.exit(2)
    app(prog_name="fastrec")


def _keep_apart() -> None:
    """Standard output is for the answer alone: what libraries and compilers print there goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(answer, "w", encoding="utf-8", closefd=True)  # noqa: SIM115 - open for as long as the process lives
