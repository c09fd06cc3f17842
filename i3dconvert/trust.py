"""Which of the user's own Python files may run again when a checkpoint names them.

`inflate path/module.py:factory` runs a file because the user typed its name. A checkpoint that names one may come from
anywhere, so it runs only if this user has inflated from, or trusted, that very file with that very content.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from i3dconvert.errors import BackboneError, CheckpointError
from i3dconvert.files import cache_folder


def remember(path: Path) -> None:
    """Note that the file may run from now on, as it is. Raises `BackboneError` when it can't be read."""
    mark = _mark(path)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # without a home to write to, checkpoints that name the file ask again


def check(path: Path) -> None:
    """Raise `CheckpointError` unless the file, as it is now, was noted."""
    if not _mark(path).exists():
        raise CheckpointError(
            f"the 2D network is built by {path}, which is new here or has changed, and would run; "
            f"if you trust that code: i3dconvert trust {path}"
        )


def _mark(path: Path) -> Path:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"can't read {path}, which builds the 2D network: {error.strerror}") from None
    digest = hashlib.sha256(f"{path.resolve()}\0".encode() + content).hexdigest()
    return cache_folder() / "trusted" / digest
