"""Print results and errors: with rich on a terminal, as plain text to a pipe, as JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from i3dconvert.names import visible
from i3dconvert.progress import silent

_PIPE_WIDTH = 200


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=True)


def show(text: str) -> None:
    """Print a line of text."""
    _console().print(visible(text), markup=False)


def show_error(message: str) -> None:
    """Print one red line to standard error."""
    line = visible(" ".join(message.split()))
    _console(stderr=True).print(f"error: {line}", style="bold red", markup=False)


def show_error_as_json(message: str) -> None:
    """Print `{"error": …, "hint": …}` to standard output; the hint is the text after the first semicolon."""
    error, _, hint = " ".join(message.split()).partition("; ")
    show_json({"error": error, "hint": hint})


def show_warning(message: str) -> None:
    """Print one yellow line to standard error."""
    _console(stderr=True).print(f"warning: {visible(message)}", style="yellow", markup=False)


def show_json(document: Any) -> None:
    """Print a JSON document to standard output."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table like rich's in a tenth of the time; columns whose name ends in `#` hold numbers."""
    from rich.cells import cell_len

    console = _console()
    edge, gap = ("  ", "   ") if console.is_terminal else (" ", "  ")
    room = console.width - 2 * len(edge) - len(gap) * (len(columns) - 1)
    table = [[column.rstrip("#") for column in columns], *([visible(number(cell)) for cell in row] for row in rows)]
    head, *body = (
        "\n".join(f"{edge}{gap.join(line)}{edge}" for line in lines)
        for lines in _laid_out(console, table, [column.endswith("#") for column in columns], room)
    )
    if title is not None:
        console.out(visible(title), style="italic")
    if console.is_terminal:
        rule = ("-" if console.options.ascii_only else "─") * (cell_len(head.partition("\n")[0]) - 2)
        console.out(f"\n{head}", style="bold")
        console.out("\n".join((f" {rule}", *body, "")))
    else:
        console.out("\n".join((head, *body)))


def _laid_out(
    console: Any, table: Sequence[Sequence[str]], right: Sequence[bool], room: int
) -> Iterator[Iterator[tuple[str, ...]]]:
    """Yield the lines of each row, with cells as wide as the columns; the widest columns are folded to fit."""
    from itertools import zip_longest

    from rich.cells import cell_len
    from rich.text import Text

    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1

    def folded(cell: str, width: int) -> list[str]:
        whole = cell_len(cell) <= width and cell.isprintable()
        return [cell] if whole else [line.plain for line in Text(cell).wrap(console, width, overflow="fold")]

    def padded(cell: str, width: int, right: bool) -> str:
        space = " " * (width - cell_len(cell))
        return space + cell if right else cell + space

    for row in table:
        lines = zip_longest(*map(folded, row, widths), fillvalue="")
        yield (tuple(map(padded, line, widths, right)) for line in lines)


def number(value: Any) -> str:
    """Format a value: thousands separated, kernels as `3×3×3`, small errors in scientific notation."""
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
    """Yield a function that shows the current step, and the share that is done, on a terminal's standard error."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting …", total=None)

        def step(text: str, share: float | None = None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=f"{visible(text)} …", total=total, completed=share or 0.0)

        yield step
