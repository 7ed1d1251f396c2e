"""The site of the pages: docstrings and links in the forms that it takes, and all that is public on its pages of reference."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from docs.extensions.docstrings import markup
from docs.extensions.links import kept
from fastrec.techniques import TECHNIQUES, Fuse

from ..pages import ROOT

REFERENCE = ROOT / "docs" / "reference"
PACKAGES = (
    "backends",
    "errors",
    "measure",
    "render",
    "retrieval",
    "serving",
    "techniques",
    "testing",
    "transforms",
)


def described() -> list[Any]:
    """What the pages of reference name, packages as all that is public in them."""
    found: list[Any] = []
    for page in REFERENCE.glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text("utf-8"), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            elif kind == "automodule":
                found += [
                    getattr(importlib.import_module(name), one)
                    for one in importlib.import_module(name).__all__
                ]
            else:
                found.append(getattr(importlib.import_module(module), name))
    return found


def test_all_that_is_public_is_described_once() -> None:
    pages = described()
    for name in ("fastrec", *(f"fastrec.{package}" for package in PACKAGES)):
        home = importlib.import_module(name)
        for one in home.__all__:
            assert any(getattr(home, one) is other for other in pages), f"{name}.{one}"
    kinds = [id(one) for one in pages if isinstance(one, type)]
    assert len(kinds) == len(set(kinds))


def test_every_technique_has_its_card_in_the_order_of_application() -> None:
    cards = re.findall(
        r"^\| \[(\w+)\]\(([\w./-]+)\)", (ROOT / "docs/techniques/README.md").read_text("utf-8"), re.MULTILINE
    )
    assert [name for name, _ in cards] == [kind.__name__ for kind in TECHNIQUES.values()]
    for (name, card), kind in zip(cards, TECHNIQUES.values(), strict=True):
        assert kind is Fuse or card == f"{kind.name.replace('_', '-')}.md", name


def test_a_docstring_keeps_its_equation_and_its_example() -> None:
    lines = [
        "One `fastrec.load`, two `x[0]`s of *args.",
        "    y = W x",
        "",
        "    z = y",
        "So `it is.",
        "Example:",
        "    >>> 1",
        "    1",
    ]
    assert markup(lines) == [
        "One :py:obj:`fastrec.load`, two ``x[0]``\\ s of \\*args.", "", "::", "", "    y = W x", "", "    z = y", "",
        "So \\`it is.", "", ".. rubric:: Example", "", ".. code-block:: pycon", "", "    >>> 1", "    1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](b.md#c)", "[a](b.md#c)"),
        ("[a](cards)", "[a](cards/README.md)"),
        ("[a](../code/x.py)", "[a](../code/x.py)"),
        ("[a](../code)", "a"),
        ("[a](../README.md#c)", "a"),
        ("[a](../gone.md)", "[a](../gone.md)"),
        ("![a](cards)", "![a](cards)"),
        ("[a](https://docs)", "[a](https://docs)"),
    ],
)
def test_links_out_of_the_pages_are_words(text: str, expected: str, tmp_path: Path) -> None:
    for path in ("docs/b.md", "docs/cards/README.md", "code/x.py", "README.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert kept(text, tmp_path / "docs", tmp_path / "docs") == expected
