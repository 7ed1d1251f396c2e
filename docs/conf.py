"""How these pages become a site: `sphinx-build docs site`. They are Markdown that reads as well where it lies, and nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

# The library of this checkout is the one that is described.
sys.path.insert(0, str(Path(__file__).parent.parent))

from fastrec import __version__ as release

project = "fastrec"
author = "The fastrec developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.extensions.docstrings", "docs.extensions.links"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

myst_heading_anchors = 4
# Tables that benchmarks write have headings of the third level, wherever they stand.
suppress_warnings = ["myst.header"]

autodoc_default_options = {"members": True, "special-members": "__call__", "no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
