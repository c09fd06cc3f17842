"""How results and errors look: rich on a terminal, plain text in a pipe, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_PIPE_WIDTH = 200


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=True)


def show(text: str) -> None:
    """One line of text."""
    _console().print(text, markup=False)


def show_error(message: str) -> None:
    """One red line on standard error."""
    line = " ".join(message.split())
    _console(stderr=True).print(f"error: {line}", style="bold red", markup=False)


def show_warning(message: str) -> None:
    """One yellow line on standard error."""
    _console(stderr=True).print(f"warning: {message}", style="yellow", markup=False)


def show_json(document: Any) -> None:
    """A JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table; columns whose name ends in `#` hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else None)
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(number(cell)) for cell in row))
    console.print(table)


def number(value: Any) -> str:
    """Thousands apart, kernels as `3×3×3`, small errors in scientific notation."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1e}"
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return "–" if value is None else str(value)


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[..., None]]:
    """A function that says what is being done, and how much of it all, on a terminal's standard error."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting …", total=None)

        def step(text: str, share: float | None = None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=f"{text} …", total=total, completed=share or 0.0)

        yield step
