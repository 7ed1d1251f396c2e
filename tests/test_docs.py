"""What the pages say is so: their tables, their links, the tests that they name."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from benchmarks import efficiency, online, pruning, searching, sharding, spread, trade_offs, updating, workers
from benchmarks.marks import put
from benchmarks.pages import results
from tests import pages
from tests.zoo.joins import page

ROOT = pages.ROOT


def test_the_summary_and_the_tables_are_the_committed_results() -> None:
    for path, text in efficiency.pages().items():
        assert path.read_text() == text, "python -m benchmarks.efficiency"


@pytest.mark.parametrize(
    "measured", [online, pruning, searching, sharding, spread, trade_offs, updating, workers]
)
def test_the_pages_are_the_committed_results(measured: ModuleType) -> None:
    page, name = measured.PAGE.read_text(), measured.__name__.rpartition(".")[2].replace("_", "-")
    for path in results(name).glob("*.json"):
        assert page == measured.with_table(page, measured.read(path))


def test_no_text_holds_both_sides_of_a_merge() -> None:
    texts = {name: (ROOT / name).read_text("utf-8") for name in pages.written()}
    assert [
        name for name, text in texts.items() if re.search(r"^(<<<<<<<|>>>>>>>) ", text, re.MULTILINE)
    ] == []


def test_the_card_of_retrieval_has_the_committed_results() -> None:
    card = (ROOT / "docs" / "techniques" / "top-k.md").read_text()
    (path,) = (ROOT / "benchmarks" / "results" / "retrieval").glob("*.md")
    assert card == put(card, "retrieval", path.read_text())


def test_the_page_of_joins_is_what_the_rules_do() -> None:
    assert (ROOT / "docs" / "joins.md").read_text() == page(), "python -m tests.zoo.joins > docs/joins.md"


def test_every_promise_names_tests_that_there_are() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    asked = {f"T{number}" for number in (*range(1, 18), *range(20, 25))}
    assert asked <= set(re.findall(r"^\| (T[0-9]+) \|", page, re.MULTILINE))
    for row in (line for line in page.splitlines() if line.startswith("| T")):
        file = ROOT
        for path, name in re.findall(r"`(tests[^`:]*)?(?:::(test_[a-z0-9_]+))?`", row.split("|")[3]):
            file = ROOT / path if path else file
            assert file.exists(), path
            assert not name or f"def {name}(" in file.read_text(), name


def places(text: str) -> set[str]:
    """What a link may lead to within a page: its headings, as they are written behind `#`."""
    headings = re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for name in pages.written():
        path = ROOT / name
        for target, place in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", path.read_text("utf-8")):
            found = path.parent / target if target else path
            if not found.exists() or (place and place not in places(found.read_text("utf-8"))):
                broken.append(f"{name}: {target}#{place}")
    assert not broken
