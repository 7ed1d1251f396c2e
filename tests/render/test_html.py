"""The report as a page: everything said in its order, names inert, nothing loaded, the same text each time."""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastrec.errors import FastrecError, InputError, PackageMissing
from fastrec.losses import Accuracy
from fastrec.measure import Breakdown, Loss, Part
from fastrec.recipe import Recipe
from fastrec.render import html, write_html
from fastrec.render.sections import printable
from fastrec.report import BUDGET, Report, Step, Tables, Trial
from fastrec.techniques import Change, Fuse, PruneDead, Skip
from tests.reports import improved, segmented, size, unchanged

pytest.importorskip("matplotlib")

SECTIONS = ["steps", "trade", "latency", "accuracy", "parts", "memory", "done", "trials", "machine", "recipe"]
HOSTILE = [
    "<script>alert(1)</script>", "{{7*7}}", "{% raw %}", "=cmd()", "x" * 10_000, "\u202eevil\u2066", "\u05d0\u05d1 \U0001f3ac",
    "a\0b", '" onload="alert(1)', "' style='x", "</style><img src=http://a.b/c>", "]]>--><b>", "url(http://a.b/c)", "$\\frac{1}{2}$",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of it: tags with their attributes, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, name: str) -> Iterator[str]:
        return (attrs[name] or "" for _, attrs in self.tags if name in attrs)


def full(name: str = "onnxruntime") -> Report:
    """A report with something in every section; `name` stands for every name that a model may give."""
    lossy = Step(name, False, (Change(name, name, name),), 0.1)
    loss = Loss(name, 0.8, 0.7999, 1e-4, 2e-5, 9000, 4000)
    parts = (Part("lookup", 1e-4, 3), Part("dense", 2e-4, 2), Part("framework", 1e-4, 9))
    return replace(
        segmented(auc=8e-4),
        sizes=(size(1, 3e-4, 1e-4, name), size(100, 1e-3, 4e-4, name), size(1000, 6.5e-3, 6.9e-3, name)),
        steps=(*improved().steps[:1], lossy),
        skipped=(Skip(name, name, name), Skip(name, BUDGET, name)),
        trials=(
            Trial(100, "eager, exact", 5e-4, 2.0, ""),
            Trial(100, name, 3e-4, 3.3, name),
            Trial(0, name, None, None, name),
        ),
        accuracy=(Accuracy.of(loss, 2e-4), Accuracy.of(replace(loss, metric="other", value=1e-3), 2e-4)),
        tables=Tables(1000, 900),
        notes=(name,),
        breakdown=(Breakdown("original", 100, 4e-4, parts, 30), Breakdown(name, 100, 4e-4, parts, 30)),
        machine=replace(improved().machine, cpu=name, libraries={name: name}, platform=name),
        recipe=Recipe((Fuse(), PruneDead(ranges={name: (0.0, 1.0)}))),
    )


@functools.cache
def page_of(name: str = "onnxruntime") -> str:
    return html(full(name))


def test_sections_stand_in_their_order_and_say_everything() -> None:
    page = Page(page_of())
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs] == SECTIONS
    for part in (
        full().headline,
        "budget missed",
        "Slower 0.942x at 1,000 rows",
        "Exceeded other 0.80000 before",
        "called with its checks",
        "allowed 0.0002",
        "certified",
        "auc by popularity",
        "too few rows",
        "−500 us",
        "held by sessions beyond that",
        '"schema": 1',
        "2 of 64 cores, 1 thread",
    ):
        assert part in page.text, part


def test_warnings_come_before_the_headline() -> None:
    text = Page(page_of()).text
    head = text.index(full().headline, 200)
    assert all(
        text.index(word) < head for word in ("Budget missed", "Slower", "Exceeded", "Segments", "Note")
    )
    assert "Slower" not in Page(html(unchanged())).text


def test_what_has_no_data_is_left_out() -> None:
    page = Page(html(unchanged()))
    found = [attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs]
    assert found == ["memory", "done", "machine", "recipe"]
    assert not [tag for tag, _ in page.tags if tag == "svg"]
    assert "unchanged" in page.text


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_never_markup_script_or_style(name: str) -> None:
    text = page_of(name)
    page, plain = Page(text), Page(page_of())
    assert Counter(tag for tag, _ in page.tags)["script"] == 0
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert {key for _, attrs in page.tags for key in attrs} == {
        key for _, attrs in plain.tags for key in attrs
    }
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert not set("\0\u202e\u2066") & set(text)
    assert len(text) < len(page_of()) + 60_000


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_is_loaded(name: str) -> None:
    text = page_of(name)
    page = Page(text)
    assert all(found.startswith("#") for key in ("src", "href", "xlink:href") for found in page.all(key))
    style = " ".join(
        [*re.findall(r"<style>(.*?)</style>", text, re.DOTALL), *page.all("style"), *page.all("clip-path")]
    )
    assert "@import" not in style
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", style))
    (policy,) = (attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy is not None and policy.startswith("default-src 'none';")


def test_a_template_in_a_name_is_shown_as_it_is() -> None:
    text = Page(page_of("{{7*7}}")).text
    assert "{{7*7}}" in text and text.count("49") == Page(page_of()).text.count("49")


def test_ids_are_there_once() -> None:
    ids = Counter(Page(page_of()).all("id"))
    assert max(ids.values()) == 1
    targets = re.findall(r"(?:href=\"|url\()#([^\")]*)", page_of())
    assert targets and set(targets) <= set(ids)


def test_the_same_report_gives_the_same_page() -> None:
    assert html(full()) == page_of()


def test_colours_are_left_to_the_page() -> None:
    drawings = re.findall(r"<svg.*?</svg>", page_of(), re.DOTALL)
    assert len(drawings) == 5
    assert not [code for drawing in drawings for code in re.findall(r":\s*(#[0-9a-f]{6})", drawing)]
    style = page_of().partition("<style>")[2].partition("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    used = set(re.findall(r"var\((--[a-z-]+)\)", page_of()))
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    html(full())
    assert dict(matplotlib.rcParams) == before


def test_characters_that_do_not_show_are_escapes_in_the_recipe() -> None:
    assert printable('"\u202ea\U000e0001\n"') == '"\\u202ea\\udb40\\udc01\n"'


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_html(improved(), path)
    assert path.read_text() == html(improved()) and path.stat().st_mode & 0o777 == 0o644
    path.write_text("old")

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match=r"report\.html.*No space left"):
        write_html(improved(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_such_folder"):
        write_html(unchanged(), tmp_path / "no_such_folder" / "report.html")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_its_cure(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrec.render import html as page

    monkeypatch.setitem(sys.modules, package, None)
    sys.modules["fastrec.render.html"]._template.cache_clear()  # type: ignore[attr-defined]  # of functools
    with pytest.raises(PackageMissing, match=rf"{package}.*pip install 'fastrec\[report\]'") as caught:
        page(improved())
    assert isinstance(caught.value, (FastrecError, ImportError))


def test_a_budget_that_was_refused_is_said_first() -> None:
    report = replace(full(), steps=(Step("quantize_tables", False, (), 0.1),))
    report = replace(report, skipped=(Skip("quantize_tables", BUDGET, "lost 0.001, 0.0002 allowed"),))
    assert "Budget refused lost 0.001, 0.0002 allowed" in Page(html(report)).text
