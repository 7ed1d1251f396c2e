"""Reports as Markdown, read back by a Markdown parser."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fastrec.measure import Breakdown, Part
from fastrec.render import markdown
from fastrec.render.markdown import escape
from fastrec.techniques import Change, Skip
from tests.reports import improved, segmented, size, unchanged

PARSER = MarkdownIt("gfm-like", {"html": True, "linkify": False})


def page(text: str) -> str:
    return str(PARSER.render(text))


def shown(text: str) -> str:
    """The text a reader of the page sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", page(text))).replace("\u2060", "")


def test_every_table_has_a_full_row_for_each_line() -> None:
    tables = re.findall(r"<table>.*?</table>", page(markdown(improved())), re.DOTALL)
    assert [table.count("<tr>") - 1 for table in tables] == [5, 4, 4, 2]
    for table in tables:
        columns = table.count("</th>")
        assert all(row.count("<td") == columns for row in table.split("<tr>")[2:])


def test_it_says_everything() -> None:
    text = shown(markdown(improved()))
    for part in (
        improved().headline,
        "1.13 ms ±3.0 % (p95 1.36 ms)",
        "2.81x (2.78 to 2.84x)",
        "slower 0.942x (0.933 to 0.951x)",
        "EmbeddingBag with offsets is not supported",
        "Largest difference: 6.0e-08, 4.1e-07 of the outputs' spread, within float rounding (over 1,000 rows)",
        "x86_64",
    ):
        assert part in text
    assert markdown(unchanged()).startswith(
        "## Unchanged: nothing could be done, and the original goes on serving"
    )


def test_segments_are_a_table_with_the_worst_marked() -> None:
    text = shown(markdown(segmented(auc=8e-4)))
    assert "auc by popularity, 0.0008 allowed in each" in text and "10 (worst)" in text
    assert "**not certifiable**" in markdown(segmented(auc=8e-4))
    assert markdown(segmented()).count("**too few rows**") == 0


def test_where_the_time_goes_is_a_table() -> None:
    parts = (Part("dense", 3e-4, 2), Part("framework", 1e-4, 9))
    found = Breakdown("original", 100, 4e-4, parts, 30)
    text = shown(markdown(replace(improved(), breakdown=(found,))))
    assert "Where the time of one call goes at 100 rows" in text
    assert "dense 300 us 75.0 % 4.00x 2" in " ".join(text.split())


HOSTILE = [
    "a|b", "<script>alert(1)</script>", "<!-- ", "&lt;b&gt;", "[x](javascript:alert(1))", "![x](http://a.b/c.png)",
    "`code`", "**bold** _it_ ~~gone~~", "line\n\n# heading", "\\|", "\\", "=cmd()", "{{7*7}}", "$x$", "| --- |",
    "https://evil.example/x", "www.evil.example",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_show_as_they_are_and_never_become_markup(name: str) -> None:
    report = replace(
        improved(),
        sizes=(size(1, 2e-3, 1e-3, session=name),),
        steps=tuple(
            replace(s, technique=name, changes=(Change(name, name, name),)) for s in improved().steps
        ),
        skipped=(Skip(name, name, name),),
        notes=(name,),
    )
    text = markdown(report)
    tags = set(re.findall(r"</?([a-z0-9]+)", page(text)))
    assert tags <= {"h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li"}
    assert not re.search(r"(?<!\\)://|www\.", text)  # GitHub makes links of these, the parser here does not
    assert (
        page(text).count("<strong>") == page(markdown(improved())).count("<strong>") - 3
    )  # one size, not four marked
    assert shown(text).count(" ".join(name.split())) >= 8


def test_huge_names_are_cut() -> None:
    report = replace(improved(), skipped=(Skip("x" * 10_000, "y" * 10_000, "z" * 10_000),))
    assert len(markdown(report)) < len(markdown(improved())) + 1000


def test_mentions_and_issue_numbers_reach_no_one() -> None:
    assert not re.search(r"[@#]\w", html.unescape(page(escape("@someone #12 a@b.example"))))


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_escaped_text_is_shown_as_it_was(text: str) -> None:
    cell = f"| head |\n| --- |\n| x{escape(text)}x |\n"
    assert "<table>" in page(cell)
    assert shown(cell).split() == ["head", f"x{text}x".replace("\u2060", "")]
