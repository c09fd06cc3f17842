"""The command line: parse the arguments, call the library, print the results.

Exit codes: 0 success, 1 a failed check or bad input, 2 wrong usage.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from i3dconvert import __version__
from i3dconvert.cli import bench, classify, export, help, inflate, inspect, list, render, report, trust, verify
from i3dconvert.cli.render import show_warning
from i3dconvert.errors import I3DError, I3DWarning, first_line
from i3dconvert.names import near

app = typer.Typer(
    name="i3dconvert",
    help="Inflate a pretrained 2D image backbone into a 3D network, prove that the two agree, and export the result.",
    epilog="i3dconvert inflate resnet50\ni3dconvert verify\ni3dconvert export --onnx",
    no_args_is_help=True,
    cls=help.Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (list, inflate, verify, export, report, inspect, classify, bench, trust):
    app.command(module.__name__.rpartition(".")[2], cls=help.Command, epilog=module.EXAMPLE)(module.command)


OUT_OF_MEMORY = "out of memory; reduce --frames or --size"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"i3dconvert {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _warned(message: Warning | str, category: type[Warning], *where: Any, **beside: Any) -> None:
    """Show our own warnings to the user, and hide those of other libraries."""
    if issubclass(category, I3DWarning):
        show_warning(str(message))


def _terminated(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _wrong_usage(error: Any, as_json: bool) -> int:
    """Print click's error, and the known value that is most like an unknown one."""
    error.message = str(error.message).removeprefix("Value error, ")  # which typer writes before those of a Literal
    message = error.format_message()
    found = _NOT_ONE_OF.search(message)
    hint = near(found[1], re.findall(r"'([^']+)'", found[2])).strip() if found else ""
    said = f"{message.rstrip('.')}; {hint}" if hint else message
    if as_json:
        render.show_error_as_json(said)
    elif type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        render.show_error(said)
        command = error.ctx.command_path if error.ctx is not None else "i3dconvert"
        typer.echo(f"`{command} -h` lists the options", err=True)
    return int(error.exit_code)


_NOT_ONE_OF = re.compile(r"'([^']+)' is not one of (.+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for locales without the multiplication sign
    warnings.showwarning = _warned
    # Importing torch and reading a network create many objects and few cycles: look for these more rarely, not at exit.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    show_error = render.show_error_as_json if "--json" in words else render.show_error
    try:
        return int(app(args=words, prog_name="i3dconvert", standalone_mode=False) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except I3DError as error:
        show_error(str(error))
    except MemoryError:
        show_error(OUT_OF_MEMORY)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors, from whichever click typer uses
            return _wrong_usage(error, as_json="--json" in words)
        if type(error).__name__ == "Abort":
            return 130
        if os.environ.get("I3DCONVERT_DEBUG"):
            raise
        if isinstance(error, RuntimeError) and "allocate" in first_line(error):  # torch's message
            show_error(OUT_OF_MEMORY)
            return 1
        said = f"unexpected {type(error).__name__}: {first_line(error)}"
        show_error(f"{said}; this is a bug: I3DCONVERT_DEBUG=1 shows where")
    return 1
