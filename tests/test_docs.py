"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.results import Results
from benchmarks.tables import brief

ROOT = Path(__file__).parent.parent


def test_the_table_is_the_committed_result() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
    found = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert table.strip() in [brief(Results.read(path)).strip() for path in found]


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_use_is_short_and_runs() -> None:
    code = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    written = []
    short = code.replace(
        "compress(model, batch)", "compress(model, batch, seconds=2, batch_sizes=(1,), progress=False)"
    )
    short = short.replace('open("report.json", "w").write', "written.append")
    exec(compile(short, "README.md", "exec"), {"written": written})
    assert written[0].startswith("{")
