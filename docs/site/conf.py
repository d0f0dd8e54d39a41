"""Sphinx's settings; `build.py` puts this file beside the pages."""

import sys
from pathlib import Path

from ppl_vi._version import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "ppl_vi"
author = "The ppl_vi authors"
copyright = author
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
]
exclude_patterns = ["conf.py", "mathml.py"]

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_output_stderr = "remove"
html_math_renderer = "mathml"

default_role = "code"  # docstrings put code between single backticks
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

templates_path = ["templates"]
html_theme = "pydata_sphinx_theme"
html_title = f"ppl_vi {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_sidebars: dict[str, list[str]] = {
    page: [] for page in ("quickstart", "tutorial", "glossary", "gallery", "genindex", "search")
}
html_theme_options = {
    "github_url": "https://github.com/ppl-vi/ppl_vi",
    "logo": {"text": "ppl_vi"},
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
