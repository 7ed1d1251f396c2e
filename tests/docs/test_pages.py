"""Every Python block of every page is run, as it is printed: here, or by a test that has what it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrec.errors import PackageMissing
from tests import pages

pytestmark = pytest.mark.usefixtures("served_anyway")


@pytest.mark.parametrize("page", [page for page in pages.written() if pages.left(page)])
def test_what_a_page_shows_runs(page: str, usual: dict[str, Any]) -> None:
    """A page that asks for a name that others do not is given it in `usual`, or has a test of its own, which takes the block."""
    try:
        for block in pages.left(page):
            block.run(usual)
    except PackageMissing as error:
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        assert error.name and error.name.partition(".")[0] != "fastrec", error
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("page", pages.asked())
def test_what_tests_take_is_there_once(page: str) -> None:
    found = [block.code for block in pages.blocks(page)]
    assert found
    for words in filter(None, pages.asked()[page]):
        assert [words in block for block in found].count(True) == 1, words


def test_no_block_has_another_name() -> None:
    """What is called py or python3, or is indented, would not be found."""
    for page in pages.written():
        fences = re.findall(r"^[ >]*[`~]{3,}(.*)$", (pages.ROOT / page).read_text("utf-8"), re.MULTILINE)
        assert not [name for name in fences if "py" in name.lower() and name != "python"], page
        assert fences.count("python") == len(pages.blocks(page)), page


def test_the_use_is_short(usual: dict[str, Any]) -> None:
    (block,) = pages.blocks("README.md")
    assert len([line for line in block.code.splitlines() if line.strip()]) <= 12
    names = pages.run("README.md")
    assert names["scores"].shape == (32, 1)
    assert Path("report.json").read_text().startswith("{")


def test_the_chapters_of_the_guide(usual: dict[str, Any], made: list[Any]) -> None:
    names = pages.run("docs/guide.md", **usual)
    asked, found, int8, by_segment, pruned, smaller = made
    model, user, catalogue = usual["model"], usual["user"], usual["catalogue"]
    with torch.no_grad():
        best = model(user[:1].expand_as(catalogue), catalogue).topk(10)
    torch.testing.assert_close(names["values"], best.values)
    assert asked.report.work.candidate_after < asked.report.work.candidate_before
    assert found.report.searched and Path("trials.jsonl").exists()
    done = [[step.technique for step in one.report.steps] for one in (int8, by_segment, pruned)]
    assert done[0] == ["fuse", "quantize_tables", "quantize_linears"] and done[1] == done[0][:2]
    assert done[2] == ["prune_neurons", "recover", *done[0]]
    assert all(one.holds for one in int8.report.accuracy)
    assert {one.grouping for one in by_segment.report.segments} == {"popularity", "user"}
    assert smaller.report.met
    assert names["again"](**usual["batch"]).equal(smaller(**usual["batch"]))
    with torch.no_grad():
        scores = usual["users"] @ usual["items"].T
    scores[0, [3, 1]] = scores[2, 2] = -torch.inf
    torch.testing.assert_close(names["scores"], scores.topk(10).values)


def test_the_loop_of_updates(usual: dict[str, Any]) -> None:
    names = pages.run("docs/updating.md", **usual)
    torch.testing.assert_close(names["scores"], usual["fast"](**usual["batch"]))
    assert names["served"].digest == names["new"].digest
