"""The site: `make docs` builds it, warnings are errors."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import i3dconvert

project = "i3dconvert"
release = version = i3dconvert.__version__
copyright = "the i3dconvert authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"i3dconvert {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js", "copy.js"]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "literal"


def _mathml(display: str) -> Any:
    """Formulas as browsers draw them by themselves, without a script from elsewhere."""

    def visit(translator: Any, node: nodes.Element) -> None:
        translator.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_mathml("inline"), None), (_mathml("block"), None))
