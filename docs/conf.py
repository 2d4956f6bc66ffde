# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings of the site; ``make docs`` builds it (tools/build_docs.py). Sphinx, as MONAI has it."""

from importlib.metadata import version as version_of

project = "Models Genesis for MONAI"
author = "Models Genesis for MONAI contributors"
copyright = author
version = release = version_of("models-genesis")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns: list[str] = []
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those in the file: tools/run_tutorial.py
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
