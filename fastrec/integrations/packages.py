"""Packages that only an integration needs."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import PackageMissing

__all__ = ["package"]


def package(name: str, extra: str) -> Any:
    """The package (or a module of it) of this name, which the extra of this name installs. Raises `PackageMissing`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PackageMissing(
            f"fastrec.integrations.{extra} needs {name}, which cannot be imported ({error}): "
            f"pip install 'fastrec[{extra}]'"
        ) from error
