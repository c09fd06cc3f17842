"""Translate state-dict keys between two networks' names with a table that is read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Rows = Sequence[tuple[str, str]]
"""Pairs of module names, ours and theirs; the first match counts.

`{}` matches a number and `*` anything, in the same order on both sides. The part after the module's name (`weight`,
`running_mean`, …) is kept; a row can also name a whole tensor.
"""

SAME: Rows = (("*", "*"),)


def in_stages(stages: Sequence[str], parts: Mapping[str, str]) -> Rows:
    """Return rows for a ResNet whose stages have their own names, where `{}` is the block: `layer1.{}.conv1`, …"""
    return tuple(
        (f"layer{number}.{{}}.{ours}", f"{stage}.{theirs}")
        for number, stage in enumerate(stages, 1)
        for ours, theirs in parts.items()
    )


def translated(rows: Rows, key: str, back: bool = False) -> str | None:
    """Translate a key from the left names to the right ones, or `back`; None if no row matches."""
    module, _, leaf = key.rpartition(".")
    for pattern, other in ((right, left) for left, right in rows) if back else rows:
        wanted = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))
        named = other.replace("*", "{}")
        if found := wanted.fullmatch(key):
            return named.format(*found.groups())
        if found := wanted.fullmatch(module):
            return f"{named.format(*found.groups())}.{leaf}"
    return None
