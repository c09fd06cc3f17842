"""Which of the user's own Python files may run again when a checkpoint names them.

`inflate path/module.py:factory` runs a file because the user typed its name. A checkpoint that names a file may come
from anywhere, so the file runs only if this user has inflated from it, or trusted it, with its current content.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from i3dconvert.errors import BackboneError, CheckpointError
from i3dconvert.files import cache_folder


def remember(path: Path) -> None:
    """Allow the file to run with its current content. Raises `BackboneError` if it can't be read."""
    mark = _mark(path)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # without a writable home, checkpoints that name the file ask again


def check(path: Path) -> None:
    """Raise `CheckpointError` unless the file is allowed to run with its current content."""
    if not _mark(path).exists():
        raise CheckpointError(
            f"the 2D network is built by {path}, which is new or has changed; "
            f"if you trust its code, run i3dconvert trust {shlex.quote(str(path))}"
        )


_MOST = 2**23
"""The most bytes of a Python file."""


def _mark(path: Path) -> Path:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BackboneError(f"{path}, which builds the 2D network, is a pipe or a device; give a Python file")
        if path.stat().st_size > _MOST:
            raise BackboneError(f"{path}, which builds the 2D network, is larger than any Python file")
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"can't read {path}, which builds the 2D network: {error.strerror}") from None
    digest = hashlib.sha256(f"{path.resolve()}\0".encode() + content).hexdigest()
    return cache_folder() / "trusted" / digest
