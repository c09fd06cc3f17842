"""The layout of help: options in named groups, whole words, each example on its own line.

Help is plain text, as importing rich's help takes 0.15 s.
"""

from __future__ import annotations

import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

PRINTING = "Printed output"
OTHERS = "Other frameworks"
_FIRST = "Options"
_NAMES = 28
"""The most columns for option names; longer names get a line of their own."""


class _Examples:
    """Writes the examples as they are typed, one on each line."""

    epilog: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples; typer calls this last."""
        if self.epilog:
            first, *others = self.epilog.splitlines()
            formatter.write(f"\n  Example: {first}\n" + "".join(f"           {line}\n" for line in others))


class Group(_Examples, TyperGroup):
    """The list of commands."""


class Command(_Examples, TyperCommand):
    """A command that lists its options under the `rich_help_panel` that each names, in the order of the function."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then group by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group, name = _placed(param, record[0])
                groups.setdefault(group, []).append((name, _said(param)))
        column = 2 + min(_NAMES, max(len(name) for rows in groups.values() for name, _ in rows))
        for group, rows in groups.items():
            with formatter.section(group):
                for name, said in rows:
                    formatter.write(_row(name, said, column, formatter.width))


def _placed(param: Any, shown: str) -> tuple[str, str]:
    """Return the group of an argument or an option, and its name there."""
    if param.param_type_name == "argument":
        return "Arguments", param.metavar or param.name
    of_its_own = PRINTING if param.name == "help" else _FIRST
    return getattr(param, "rich_help_panel", None) or of_its_own, shown


def _said(param: Any) -> str:
    """Return the help of a parameter, with its default if that is useful."""
    default = "" if param.show_default is False or getattr(param, "is_flag", False) else param.default
    default = param.show_default if isinstance(param.show_default, str) else getattr(default, "value", default)
    return f"{param.help} [default: {default}]" if isinstance(default, str | int) and default != "" else str(param.help)


def _row(name: str, said: str, column: int, width: int) -> str:
    """Return a name and its help beside it; lines do not break at hyphens, which option names contain."""
    lines = textwrap.wrap(said, width - column - 2, break_on_hyphens=False, break_long_words=False)
    beside = lines.pop(0) if len(name) <= column - 2 else ""
    first = f"  {name:{column}}{beside}".rstrip()
    return "\n".join((first, *(f"  {'':{column}}{line}" for line in lines))) + "\n"
