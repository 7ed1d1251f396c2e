"""Packages that only some uses need."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import PackageMissing

__all__ = ["package"]


def package(name: str, extra: str, user: str) -> Any:
    """The package (or a module of it) of this name, which `user` needs and the extra installs. Raises `PackageMissing`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PackageMissing(
            f"fastrec.{user} needs {name}, which cannot be imported ({error}): pip install 'fastrec[{extra}]'"
        ) from error
