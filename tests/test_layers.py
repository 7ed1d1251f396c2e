"""Imports go down only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "fastrec"
FLOORS = {
    "errors": 0,
    "version": 0,
    **dict.fromkeys(("inputs", "trees", "unread", "rows", "shapes", "program", "graph", "subgraphs", "capture", "guards", "bounds", "fresh", "request", "declared", "cost", "places", "plain", "wording", "quiet", "progress", "budget", "nonfinite", "as_called", "fixed", "ops", "packages", "transforms", "earlier", "calls"), 1),
    **dict.fromkeys(("techniques", "backends", "measure"), 2),
    **dict.fromkeys(("recipe", "losses"), 3),
    **dict.fromkeys(("report", "tried", "updated"), 4),
    **dict.fromkeys(("plan", "render", "arguments", "journal"), 5),
    **dict.fromkeys(("accounts", "answered", "breakdowns", "compressed", "verify", "sessions", "undeclared", "pipeline", "serving", "retrieval", "certify", "limits", "rewriting", "calibration", "memo", "search", "artifact", "exports", "moved", "assembly", "updating", "following"), 6),
    **dict.fromkeys(("cli", "distributed", "integrations", "testing", "pytest_plugin"), 7),
}  # fmt: skip


def imports(path: Path) -> list[tuple[str, ast.ImportFrom]]:
    package = ("fastrec", *path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            full = (*base, *(node.module or "").split(".")) if node.module else base
            names = [full[1]] if len(full) > 1 else [alias.name for alias in node.names]
            found += [(name, node) for name in names]
    return found


def test_imports_go_down_and_families_stay_apart() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for name, node in imports(path):
            if name == part:
                continue
            same = FLOORS[name] == FLOORS[part] and FLOORS[part] in (1, 4, 6)
            if not (FLOORS[name] < FLOORS[part] or same):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong


def test_every_module_has_a_floor() -> None:
    assert {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.name[0] not in "_." and path.name != "py.typed"
    } == set(FLOORS)


def test_our_own_package_is_never_imported_inside_a_function() -> None:
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}:{node.lineno}"


def test_the_page_of_the_architecture_has_the_same_floors() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8")
    plan = page.partition("## Floors\n")[2].partition("```\n")[2].partition("```")[0]
    floor, named = "", {}
    for line in plan.splitlines():
        # A floor has its number on its first line; what is on it stands in front of three spaces and a word about it.
        floor = line[:1].strip() or floor
        named |= dict.fromkeys(re.split(r" {3,}", line[3:])[0].split(), int(floor))
    assert named == {f"{name}/" if (ROOT / name).is_dir() else name: on for name, on in FLOORS.items()}
