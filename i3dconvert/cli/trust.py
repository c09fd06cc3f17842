"""`i3dconvert trust`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from i3dconvert import trust
from i3dconvert.cli import render
from i3dconvert.cli.options import Json, Quiet

EXAMPLE = "i3dconvert trust nets/mine.py"


def command(
    file: Annotated[Path, typer.Argument(help="A Python file whose code you have read.", metavar="FILE")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Trust a Python file that builds a network.

    Commands may then run it for a checkpoint that names it, until it changes.
    """
    trust.remember(file)
    if json:
        render.show_json({"trusted": str(file)})
    elif not quiet:
        render.show(f"trusted {file} with its current content")
