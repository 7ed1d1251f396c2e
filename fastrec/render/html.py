"""A report as one page of HTML that needs nothing beside it: no script, no font, no picture, no request to anywhere.

Everything that is not the template's own text is escaped by Jinja, and the page's policy forbids whatever would load.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PackageMissing
from ..report import Report
from ..wording import clean
from .alerts import alerts
from .sections import figures, sections, status

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["html", "write_html"]

# Between the page's own lines and tags.
_GAPS = re.compile(r"\n\s*\n+")


def html(report: Report) -> str:
    """The report as one HTML page: warnings, headline, charts, tables, the recipe to copy; light or dark as the reader's system is.

    The same report gives the same text. Names from the model are shown as they are, bounded, and are never markup, script or style.

    Raises `PackageMissing` without jinja2 or matplotlib: `pip install 'fastrec[report]'`. Cost: under a second.
    """
    template = _template()
    text = template.render(
        headline=clean(report.headline, 400),
        status=status(report),
        when=report.machine.date[:10],
        alerts=alerts(report),
        figures=figures(report),
        sections=sections(report),
        css=_safe(_resource("report.css")),
    )
    return _GAPS.sub("\n", text)


def write_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page to `path`: a reader finds the old file or the new one, never a part.

    Raises `InputError`, naming the path, where it cannot be written, and whatever `html` raises.
    """
    whole, text = Path(path), html(report)
    try:
        handle, temporary = tempfile.mkstemp(dir=whole.parent, prefix=f".{whole.name[:80]}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # Temporary files are private, pages are read by others.
            Path(temporary).chmod(0o644)
            os.replace(temporary, whole)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write the report to {str(whole)!r}: {error.strerror or error}; give a file in a folder that is there"
        ) from error


@functools.cache
def _template() -> Template:
    """The template, compiled once."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise PackageMissing(
            f"the page needs jinja2, which is not installed ({error}): pip install 'fastrec[report]'"
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("report.html.j2"))


def _safe(text: str) -> Any:
    """Text of ours that is markup."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 - of this package's own files


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
