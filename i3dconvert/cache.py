"""The folder for data that is kept for this user."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return i3dconvert's part of the user's cache; for users without a home, a path that can't be written to."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "i3dconvert"
    except RuntimeError:  # the user has no home
        return Path(os.devnull) / "i3dconvert"
