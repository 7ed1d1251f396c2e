"""`python -m benchmarks.examples [name ...]`: the examples of a whole way, one after the other; what their full forms tell goes to `docs/examples.md`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastrec.wording import duration

from .marks import put
from .pages import ROOT

PAGE = ROOT / "docs" / "examples.md"
NAMES = ("ecommerce", "content", "ads", "regulated", "pictures")


def told(name: str, *options: str) -> str:
    """What an example tells, from a process of its own. Raises `CalledProcessError` where that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        tables = Path(scratch, "tables.md")
        command = [sys.executable, f"{name}.py", "--table", str(tables), *options]
        subprocess.run(command, cwd=ROOT / "examples", check=True)
        return tables.read_text().strip()


def main() -> None:
    """Runs those that are named, or all, and puts each on the page as it ends; in their short form, says how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help=", ".join(NAMES))
    parser.add_argument("--short", action="store_true", help="their short forms, which go on no page")
    given, began = parser.parse_args(), time.perf_counter()
    for name in given.names:
        if given.short:
            told(name, "--short")
            print(f"\n{name} ended {duration(time.perf_counter() - began)} after the first began", flush=True)
        else:
            tables = told(name)  # which takes minutes: the page is read after it
            PAGE.write_text(put(PAGE.read_text(), name, tables))


if __name__ == "__main__":
    main()
