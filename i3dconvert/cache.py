"""Where what this user's machine remembers is kept."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """i3dconvert's part of the user's cache; for a user without a home, a path that nothing can be written to."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "i3dconvert"
    except RuntimeError:  # there is no home
        return Path(os.devnull) / "i3dconvert"
