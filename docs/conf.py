"""The site: `make docs` builds it, warnings are errors."""

import i3dconvert

project = "i3dconvert"
release = version = i3dconvert.__version__
copyright = "the i3dconvert authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["figures.py"]
html_theme = "furo"
html_title = f"i3dconvert {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js"]
html_copy_source = html_show_sourcelink = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
default_role = "literal"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = False
