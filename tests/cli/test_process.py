"""The command as a process: what it imports, and what stands on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrec.cli

from .conftest import Saved

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "numpy", "onnxruntime", "onnx", "rich", "scipy", "fastrec.pipeline")


def process(*given: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *given], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from fastrec.cli import main\n"
        "sys.argv = ['fastrec', '--help']\n"
        "try:\n    main()\n"
        f"finally:\n    sys.stderr.write(repr([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "[]"
    assert all(
        name in done.stdout
        for name in ("compress", "benchmark", "compare", "inspect", "verify", "report", "export-onnx")
    )


def test_standard_output_is_the_object_alone(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os\nfrom tests.artifact.conftest import ranker\n"
        "def build():\n    print('printed')\n    os.write(1, b'written\\n')\n    os.system('echo echoed')\n    return ranker(), None\n"
    )
    done = process(
        "-m", "fastrec.cli", "verify", str(saved.folder), "--model", "loud:build", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "verify"
    assert all(word in done.stderr for word in ("printed", "written", "echoed"))


def test_without_typer_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "fastrec.cli.app", raising=False)
    monkeypatch.setattr(sys, "argv", ["fastrec", "--help"])
    with pytest.raises(SystemExit) as ended:
        fastrec.cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        'the command line needs typer, which is not installed: pip install "fastrec[cli]"\n'
    )
