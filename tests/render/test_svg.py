"""Drawings that stand inside a page: colours by variables, ids of their own, texts inert."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from fastrec.render.svg import COLOURS, drawn, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line(label: str = "label", said: str = "a line") -> str:
    def draw(axes: Axes) -> None:
        axes.plot([1, 2], [3, 4], color=COLOURS["good"])
        axes.text(1, 3, shown(label), color=COLOURS["ink"])

    return drawn("line", said, (3.0, 2.0), draw)


def test_it_is_one_element_without_namespace_metadata_or_style_sheet() -> None:
    root = ElementTree.fromstring(line())
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == "a line"
    assert not {"metadata", "style"} & {element.tag for element in root.iter()}
    assert "http" not in line() and "font-family" not in line() and root.get("viewBox")


def test_colours_are_variables_of_the_page() -> None:
    assert "var(--good)" in line() and "var(--ink)" in line() and "#a1b2" not in line()


def test_ids_begin_with_the_name_and_are_found() -> None:
    text = line()
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids and all(one.startswith("line-") for one in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(ids)


def test_texts_are_texts() -> None:
    text = line("<b>$\\frac{1}{2}$ & -->", '"><script>')
    words = [element.text for element in ElementTree.fromstring(text).iter("text")]
    assert "<b>$\\frac{1}{2}$ & -->" in words and "<script" not in text


def test_what_the_font_lacks_is_a_dot() -> None:
    assert shown("a\U0001f3acb\0\u202ec") == "a·bc"
    assert len(shown("x" * 10_000)) == 60


def test_it_is_the_same_each_time() -> None:
    assert line() == line()
