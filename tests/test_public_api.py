"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastrec


def test_all_is_what_there_is() -> None:
    assert sorted(fastrec.__all__) == fastrec.__all__
    for name in fastrec.__all__:
        assert getattr(fastrec, name).__doc__, name
    assert set(fastrec.__all__) <= set(dir(fastrec))


def test_every_error_is_public() -> None:
    from fastrec import errors

    assert set(errors.__all__) <= set(fastrec.__all__)


def test_importing_is_cheap() -> None:
    code = "import fastrec, sys; assert not {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(fastrec, "nothing")


def test_types_are_shipped() -> None:
    assert (Path(fastrec.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("file", "line"), [("CITATION.cff", "version: {}"), ("pyproject.toml", 'version = "{}"')]
)
def test_the_version_is_one(file: str, line: str) -> None:
    text = (Path(__file__).parent.parent / file).read_text("utf-8")
    assert line.format(fastrec.__version__) in text.splitlines()
