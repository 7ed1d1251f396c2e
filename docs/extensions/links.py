"""Links to what is no page: on the site a folder, or a text that lies outside of these, is its words alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["kept", "setup"]

_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^)#:\s]+)((?:#[^)\s]*)?)\)")


def kept(text: str, folder: Path, root: Path) -> str:
    """The text of a page in `folder`, with links that a site with its pages under `root` can follow.

    A folder that has a page about itself is that page. Files that are no pages are handed over as they are.
    """

    def link(found: re.Match[str]) -> str:
        words, target, place = found.groups()
        path = (folder / target).resolve()
        inside = path.is_relative_to(root.resolve())
        if path.is_dir() and inside and (path / "README.md").exists():
            return f"[{words}]({target.rstrip('/')}/README.md{place})"
        return words if path.is_dir() or (path.suffix == ".md" and path.exists() and not inside) else found[0]

    return _LINK.sub(link, text)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = kept(source[0], (Path(app.srcdir) / page).parent, Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, Any]:
    """Takes part in a build."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
