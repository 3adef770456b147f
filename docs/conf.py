"""The manual as a site: `nox -s docs`. The pages are plain Markdown; `index.md` says which, and in what order."""

import re
from pathlib import Path
from typing import Any

import ttreg_hf

HERE = Path(__file__).parent

project = "ttreg_hf"
author = "ttreg_hf contributors"
project_copyright = author
version = release = ttreg_hf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures/*.md"]
nitpicky = False  # signatures name types of other packages, whose pages are not here

html_theme = "furo"
html_title = "ttreg_hf"
html_theme_options = {"footer_icons": []}
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["room.css"]

myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings: list[str] = []

default_role = "literal"  # single backticks in docstrings
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False


def _menu(_app: Any, page: str, source: list[str]) -> None:
    """The links of `index.md`, in their order, are the menu."""
    if page == "index":
        pages = re.findall(r"\]\(([\w-]+)\.md\)", source[0])
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _menu)
