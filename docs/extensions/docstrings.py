"""Docstrings are plain text with code in backticks, indented equations and an example; here they become what Sphinx reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

__all__ = ["markup", "setup"]

_NAME = re.compile(r"[A-Za-z_][\w.]*")
# What would be emphasis, a substitution or a link.
_SIGNS = re.compile(r"[\\*|`]|_\b")


def markup(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring as reStructuredText: what is indented stays as it is, and so does the code of its example."""
    made: list[str] = []
    prose: list[str] = []
    # Whether the line above belongs to an equation or an example.
    deep = False

    def end() -> None:
        if prose:
            made.extend(_inline("\n".join(prose)).split("\n"))
            prose.clear()

    for line in lines:
        if not line.strip():
            end()
            made.append("")
        elif line.startswith("    "):
            end()
            made.extend([] if deep else ["", "::", ""])
            made.append(line)
            deep = True
        elif line.rstrip() == "Example:":
            end()
            made += ["", ".. rubric:: Example", "", ".. code-block:: pycon", ""]
            deep = True
        else:
            made.extend([""] if deep else [])
            prose.append(line)
            deep = False
    end()
    return made


def _inline(text: str) -> str:
    """A paragraph: names in backticks lead to where they are described, other code is code, and nothing else is a sign."""
    # Words and code in turns; behind a backtick without its other one all is words.
    parts = text.split("`")
    words, codes = parts[::2], parts[1::2]
    if len(words) == len(codes):
        words[-1] = f"{words[-1]}`{codes.pop()}"
    made = _SIGNS.sub(r"\\\g<0>", words[0])
    for code, behind in zip(codes, words[1:], strict=True):
        made += f":py:obj:`{code}`" if _NAME.fullmatch(code) else f"``{code}``"
        # Code may touch a letter, as in plurals.
        made += ("\\ " if behind[:1].isalnum() else "") + _SIGNS.sub(r"\\\g<0>", behind)
    return made


def _as_markup(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    lines[:] = markup(lines)


def _by_last_name(app: Sphinx, env: BuildEnvironment, node: Element, content: TextElement) -> Element | None:
    """A class of ours, where one of its name is described: annotations know it by the module that it is written in."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not ("." not in target or target.startswith("fastrec.")):
        return None
    domain = env.domains["py"]
    last = target.rpartition(".")[2]
    found = [
        name
        for name, _, kind, *_ in domain.get_objects()
        if kind in ("class", "exception") and name.rpartition(".")[2] == last
    ]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Takes part in a build."""
    app.connect("autodoc-process-docstring", _as_markup)
    app.connect("missing-reference", _by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
