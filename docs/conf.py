"""The site, for Sphinx: `make docs` builds it into `site/`, without network, and fails at the first warning."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).parent))

project = "embedding-pipeline"
release = version = importlib.metadata.version(project)
author = "the maintainers"
copyright = "the maintainers, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# They would turn the -- of an option into a dash.
smartquotes = False
html_theme = "furo"
html_title = "embedding-pipeline"
html_show_sphinx = False
html_copy_source = False
# Single backticks of a docstring are code.
default_role = "code"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
# The type of a parameter, such as "path", may be the name of two attributes.
suppress_warnings = ["ref.python"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the check that every public name is on the API page."""
    from api_check import is_foreign, report_missing

    app.connect("env-check-consistency", report_missing)
    app.connect("autodoc-skip-member", is_foreign)
    return {"parallel_read_safe": True}
