"""`fastrec inspect`, `verify` and `report`, and what refuses."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastrec import Report
from fastrec.backends import Eager, OnnxRuntime, Session
from fastrec.cli import looking, outcome
from fastrec.version import VERSION

from .conftest import Result, Saved

Run = Callable[..., Result]


def names(saved: Saved) -> tuple[str, ...]:
    """The sessions of the shared model, at 1 and at 16 rows."""
    assert saved.fast.plan is not None
    return saved.fast.plan.names


def test_inspect_says_what_a_folder_holds(
    fastrec: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> Session:
        raise AssertionError("a session was opened")

    for backend in (OnnxRuntime, Eager):
        monkeypatch.setattr(backend, "open", opened)
        monkeypatch.setattr(backend, "compile", opened)
    found = fastrec("inspect", saved.folder, "--json").json
    assert [(one["name"], one["shape"], one["request"]) for one in found["inputs"]] == [
        ("user", [None], True),
        ("item", [None], False),
        ("price", [None], False),
    ]
    assert found["outputs"] == [{"dtype": "float32", "shape": [None]}]
    one, many = names(saved)  # which of its forms is the faster, a clock decides
    assert found["plan"] == [[1, one], [16, many]]
    assert found["files"]["tensors.safetensors"]["bytes"] < found["bytes"]
    said = fastrec("inspect", saved.folder).out
    assert "  item   int64    N  ids 0 to 89\n" in said and "recipe: fuse\n" in said
    assert f"  1 row    {one}\n  16 rows  {many}\n" in said


def test_verify_compares_answers_with_those_that_were_recorded(fastrec: Run, saved: Saved) -> None:
    done = fastrec("verify", saved.folder, "--json")
    assert done.code == 0
    assert {row["session"]: row["holds"] for row in done.json["answers"]} == {
        **dict.fromkeys(saved.fast.sources, True),
        "original": True,
    }
    assert f"  {names(saved)[0]}: the same bits" in fastrec("verify", saved.folder).out


def test_other_answers_are_a_failure(fastrec: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    read = looking.read

    def spoilt(*given: object, **settings: object) -> object:
        found = read(*given, **settings)
        session = next(iter(found.sessions.values()))
        run = type(session).__call__
        monkeypatch.setattr(
            type(session), "__call__", lambda self, *x: tuple(t + 0.01 for t in run(self, *x))
        )
        return found

    monkeypatch.setattr(looking, "read", spoilt)
    done = fastrec("verify", saved.folder, "--json")
    assert done.code == 1
    first = next(row for row in done.json["answers"] if row["session"] != "original")
    assert not first["holds"] and first["max_abs"] == pytest.approx(0.01, rel=1e-3)


def cut(folder: Path) -> None:
    os.truncate(folder / "tensors.safetensors", 1000)


def linked(folder: Path) -> None:
    (folder / "report.json").unlink()
    (folder / "report.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize("command", ["verify", "inspect", "report"])
@pytest.mark.parametrize(("spoil", "kind"), [(cut, "CorruptArtifactError"), (linked, "UnsafeArtifactError")])
def test_what_is_damaged_or_unsafe_has_a_code_of_its_own(
    fastrec: Run, saved: Saved, tmp_path: Path, command: str, spoil: Callable[[Path], None], kind: str
) -> None:
    folder = saved.copy(tmp_path)
    spoil(folder)
    done = fastrec(command, folder, "--json")
    assert (done.code, done.json["exit_code"], done.json["error"]["type"]) == (3, 3, kind)
    assert str(folder) in done.json["error"]["path"] and len(done.err.splitlines()) == 1


def test_there_has_to_be_something(fastrec: Run, tmp_path: Path) -> None:
    done = fastrec("verify", tmp_path / "nothing")
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("fastrec: ArtifactNotFoundError: there is no artifact at ")
    assert "Traceback" in fastrec("verify", tmp_path / "nothing", "--debug").err


def test_a_fault_of_ours_is_told_from_a_call_that_does_not_fit(
    fastrec: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "check", lambda folder: 1 / 0)
    done = fastrec("inspect", saved.folder, "--json")
    assert (done.code, done.json["error"]["type"]) == (outcome.INTERNAL, "ZeroDivisionError")
    assert "Traceback" in done.err


def test_reports_are_shown_in_each_form(fastrec: Run, saved: Saved, tmp_path: Path) -> None:
    report = saved.fast.report
    (tmp_path / "report.json").write_text(report.to_json())
    assert fastrec("report", saved.folder).out == fastrec("report", tmp_path / "report.json").out
    assert fastrec("report", saved.folder, "--markdown").out.startswith("## ")
    found = fastrec("report", tmp_path / "report.json", "--json").json["report"]
    found["seconds"] = report.seconds
    assert Report.from_json(report.to_json()).headline in fastrec("report", saved.folder).out
    done = fastrec(
        "report", saved.folder, "--html", tmp_path / "r.html", "--csv", tmp_path / "tables", "--json"
    )
    assert sorted(Path(path).name for path in done.json["written"])[-2:] == ["r.html", "trials.csv"]
    with (tmp_path / "tables" / "latency.csv").open(newline="") as file:
        assert [row["batch_rows"] for row in csv.DictReader(file)] == ["1", "16"]


@pytest.mark.parametrize("text", [b"{}", b"\xff", b"[1"])
def test_what_is_no_report_is_named(fastrec: Run, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "report.json").write_bytes(text)
    done = fastrec("report", tmp_path / "report.json")
    assert done.code == 2 and str(tmp_path / "report.json") in done.err


def test_the_model_that_is_given_has_to_be_the_one(fastrec: Run, saved: Saved, mine: Path) -> None:
    assert fastrec("verify", saved.folder, "--model", "callers_own:pair").code == 0
    done = fastrec("verify", saved.folder, "--model", "callers_own:other")
    assert done.code == 2 and "InputError" in done.err


def test_usage_and_version(fastrec: Run) -> None:
    assert fastrec("--version").out == f"fastrec {VERSION}\n"
    assert fastrec("verify").code == 2
    assert fastrec("optimise").code == 2
    assert torch.get_num_threads() == 1  # the fixture's, and nothing was changed
