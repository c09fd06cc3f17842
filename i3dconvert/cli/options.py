"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i3dconvert.cli import render
from i3dconvert.cli.help import OTHERS, PRINTING
from i3dconvert.errors import CheckpointError, DeviceError

if TYPE_CHECKING:
    import torch


class Dtype(Enum):
    """Floating-point types by their torch names."""

    float64 = "float64"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    def torch(self) -> torch.dtype:
        """Return the torch dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


class Device(Enum):
    """Devices for torch."""

    cpu = "cpu"
    cuda = "cuda"

    def check(self) -> None:
        """Raise `DeviceError` if the device does not exist."""
        import torch

        if self is Device.cuda and not torch.cuda.is_available():
            raise DeviceError("torch finds no CUDA device; use --device cpu")


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", rich_help_panel=PRINTING)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.", rich_help_panel=PRINTING)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
File = Annotated[
    Path | None,
    typer.Argument(
        help="A file written by i3dconvert.",
        show_default="the only checkpoint in this directory",
        metavar="FILE",
    ),
]


Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Class names, in a .txt or .json file.",
        show_default=False,
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        "-i",
        metavar="PICTURE",
        help="Also compare on this picture. Repeatable.",
        show_default=False,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        "-f",
        min=1,
        metavar="N",
        help="Frames per clip.",
        show_default="16, or fewer for large networks",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", "-s", min=1, metavar="PIXELS", help="Height and width.", show_default="the backbone's, or less"
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The file of the 2D weights, if it has moved.", show_default=False),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="PATH.py:NAME",
        help="The 2D network (a function or module), if FILE was saved from a module in memory. Runs PATH.py.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="CHART", help="Save a chart to this .svg or .png file.", show_default=False)
]
Layout = Annotated[
    str,
    typer.Option(
        metavar="NAME[:NETWORK]",
        help="Use a framework's tensor names, e.g. slowfast.",
        show_default=False,
        rich_help_panel=OTHERS,
    ),
]
FromLayout = Annotated[
    str,
    typer.Option(
        "--from-layout",
        metavar="NAME[:NETWORK]",
        help="FILE is a checkpoint of this framework.",
        show_default=False,
        rich_help_panel=OTHERS,
    ),
]


def complete_backbone(incomplete: str) -> list[str]:
    """Return the backbones that begin with `incomplete`, from the libraries' sources, without importing them."""
    from i3dconvert.names import qualified_names

    return [name for name in qualified_names() if name.startswith(incomplete)]


def reader(from_layout: str) -> Any:
    """Return the function that reads a checkpoint, ours or a framework's."""
    from i3dconvert import checkpoint
    from i3dconvert.checkpoint import adoption
    from i3dconvert.frameworks import framework_of

    targets = framework_of(from_layout).targets if from_layout else ()
    if len(targets) == 1 and targets[0].note:
        render.show_warning(targets[0].note)
    return partial(adoption.adopt, layout=from_layout) if from_layout else checkpoint.read


def the_checkpoint(file: Path | None) -> Path:
    """Return `file`, or the only i3dconvert checkpoint in the current directory."""
    if file is not None:
        return file
    from safetensors import SafetensorError, safe_open

    def ours(path: Path) -> bool:
        try:
            with safe_open(path, framework="np") as handle:
                return "i3dconvert" in (handle.metadata() or {})
        except (SafetensorError, OSError):
            return False

    files = sorted(path for path in Path.cwd().glob("*.safetensors") if path.is_file())
    found = [path for path in files if ours(path)]
    if len(found) == 1:
        return Path(found[0].name)
    if found:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"there are {len(found)} i3dconvert checkpoints here ({names}); name one")
    others = f" (only {', '.join(path.name for path in files[:5])}, which i3dconvert did not write)" if files else ""
    raise CheckpointError(f"there is no i3dconvert checkpoint here{others}; `i3dconvert inflate BACKBONE` writes one")
