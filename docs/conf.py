"""Sphinx: ``pip install -e ".[docs]" && sphinx-build docs docs/_build``."""

project = "kpair"
author = "the kpair authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]  # the formulas of theory.md
myst_heading_anchors = 3  # links to sections
html_theme = "furo"
autodoc_typehints = "description"
napoleon_custom_sections = [("Arguments", "params_style")]
exclude_patterns = ["_build"]
