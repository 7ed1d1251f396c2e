"""A figure of matplotlib as SVG to stand inside a page: colours by CSS variables, its own ids, no fonts, nothing from outside.

The same figure gives the same text. matplotlib is imported here alone, and only where something is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..errors import PackageMissing
from ..wording import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "drawn", "shown"]

# Each stands for a variable of the page's style, which light and dark set: matplotlib wants colours as numbers.
COLOURS = {
    name: f"#a1b2{index:02x}"
    for index, name in enumerate(
        ("ink", "muted", "line", "card", "before", "after", "good", "bad", "lookup", "interaction", "dense", "framework", "soft")
    )
}  # fmt: skip
_VARIABLES = {code: f"var(--{name})" for name, code in COLOURS.items()}
_CODE = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font-family:[^;]*;?\s*|font:[^;]*?(?=\d)")
_LOCAL = re.compile(r"url\(#([^)]*)\)")
_SIZE = 9.0
_LONG = 60
_SAID = 800


def drawn(name: str, said: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """One chart, `draw` on the axes of a figure of so many inches, as an `<svg>` element.

    `name` keeps its ids apart from those of other charts of the page, `said` is read out in its place. Raises `PackageMissing`
    without matplotlib. Cost: some 100 ms.
    """
    try:
        import matplotlib
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PackageMissing(
            f"charts need matplotlib, which is not installed ({error}): pip install 'fastrec[report]'"
        ) from error
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": _SIZE,
        "text.color": COLOURS["ink"],
        "axes.edgecolor": COLOURS["line"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "grid.color": COLOURS["line"],
        "grid.linewidth": 0.6,
        "lines.solid_capstyle": "round",
        "path.simplify": False,
    }
    del matplotlib
    # A reader's own style sheet does not change the page; settings are put back after.
    with style.context(["default", settings]):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(file.getvalue(), name, said)


def shown(text: str) -> str:
    """A foreign text on one line, bounded, of which matplotlib's own font has every character, as it measures with that: others
    are a dot."""
    from matplotlib import font_manager, ft2font

    known = ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in known else "·" for c in clean(text, _LONG))


def _inline(text: str, name: str, said: str) -> str:
    """The drawing as an element of a page."""
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it just now, and escapes what it is given
    for parent in list(root.iter()):
        for child in list(parent):
            if _plain(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _plain(element.tag)
        attributes = {_plain(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value.removeprefix('#')}"
            elif key == "style":
                value = _FONT.sub("", value)
            value = _LOCAL.sub(rf"url(#{name}-\1)", value)
            element.set(key, _CODE.sub(lambda found: _VARIABLES[found.group()], value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", clean(said, _SAID))
    return ElementTree.tostring(root, encoding="unicode")


def _plain(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]
