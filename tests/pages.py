"""The Python blocks of the pages. Whoever runs one takes it from here, as it is printed.

`tests/docs/test_pages.py` runs what a page shows, one block after another, with the names that pages take for granted. Blocks that need
more (a cluster, another library, real data) are taken by tests that have it, as `pages.run("docs/page.md", "words of the block")` or as
the text `pages.code("docs/page.md", "words of the block")`, and are left out there.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Block", "asked", "blocks", "code", "left", "run", "written"]

ROOT = Path(__file__).parent.parent
_FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page, behind its first `line` lines."""

    page: str
    line: int
    code: str

    def run(self, names: dict[str, Any]) -> None:
        """Runs it on these names, which hold what it leaves; a traceback has the lines of the page."""
        exec(compile("\n" * self.line + self.code, str(ROOT / self.page), "exec"), names)


def written() -> list[str]:
    """Every page, by its path from the root."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return tuple(
        Block(page, text.count("\n", 0, found.start(1)), found[1]) for found in _FENCED.finditer(text)
    )


def code(page: str, words: str) -> str:
    """The one block of a page that holds these words."""
    return _one(page, words).code


def run(page: str, words: str = "", /, **given: Any) -> dict[str, Any]:
    """The names that the one block with these words leaves, or without words the whole page, run with those given."""
    names = {"__name__": "page", **given}
    for block in [_one(page, words)] if words else blocks(page):
        block.run(names)
    return names


def left(page: str) -> list[Block]:
    """The blocks that no test takes for itself."""
    taken = asked().get(page, ())
    return [block for block in blocks(page) if not any(words in block.code for words in taken)]


@cache
def asked() -> Mapping[str, Sequence[str]]:
    """The words by which tests take blocks, page by page, as they stand in their sources; no words for a whole page."""
    found = defaultdict(list)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pages.run", "pages.code"):
                match node.args:
                    case [ast.Constant(page), ast.Constant(words)]:
                        found[page].append(words)
                    case [ast.Constant(page)]:
                        found[page].append("")
    return found


def _one(page: str, words: str) -> Block:
    (found,) = [block for block in blocks(page) if words in block.code]
    return found
