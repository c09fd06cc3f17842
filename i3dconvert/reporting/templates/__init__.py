"""Templates of pages and cards, rendered with Jinja."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from i3dconvert.names import visible


def _printable(value: Any) -> Any:
    """Escape the control characters in a text, but its line breaks; figures are ours."""
    return value if isinstance(value, Markup) else "\n".join(map(visible, str(value).split("\n")))


_ENVIRONMENT = Environment(
    loader=PackageLoader("i3dconvert.reporting"),
    autoescape=select_autoescape(["html"]),
    finalize=_printable,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(name: str, **values: Any) -> str:
    """The template `name` with these values, escaped in HTML."""
    return _ENVIRONMENT.get_template(name).render(**values)
