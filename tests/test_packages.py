"""A package that is not there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from fastrec.errors import PackageMissing
from fastrec.packages import package


def test_the_module_of_scikit_learn_says_it_when_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "fastrec.integrations.sklearn", raising=False)
    with pytest.raises(PackageMissing, match=r"pip install 'fastrec\[sklearn\]'"):
        importlib.import_module("fastrec.integrations.sklearn")


def test_what_is_there_is_given() -> None:
    found: Any = package("json", "mlflow", "integrations.mlflow")
    assert found.loads("1") == 1


def test_no_library_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, fastrec.pipeline, fastrec.integrations.mlflow; "
        "assert not {'mlflow', 'sklearn', 'litserve', 'ray', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
