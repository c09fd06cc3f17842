"""State-dict keys from one network's names into another's, by a table that reads both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Rows = Sequence[tuple[str, str]]
"""Pairs of modules' names, ours and theirs; the first that fits counts.

`{}` is a number and `*` anything, the same in the same order on both sides. What stands behind the module's name
(`weight`, `running_mean`, …) stays; a row can also name a tensor as a whole.
"""

SAME: Rows = (("*", "*"),)


def in_stages(stages: Sequence[str], parts: Mapping[str, str]) -> Rows:
    """Rows for a ResNet whose stages have names of their own, `{}` being the block: `layer1.{}.conv1`, …"""
    return tuple(
        (f"layer{number}.{{}}.{ours}", f"{stage}.{theirs}")
        for number, stage in enumerate(stages, 1)
        for ours, theirs in parts.items()
    )


def translated(rows: Rows, key: str, back: bool = False) -> str | None:
    """A key from the left names into the right ones, or `back`; None where no row fits."""
    module, _, leaf = key.rpartition(".")
    for pattern, other in ((right, left) for left, right in rows) if back else rows:
        wanted = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))
        named = other.replace("*", "{}")
        if found := wanted.fullmatch(key):
            return named.format(*found.groups())
        if found := wanted.fullmatch(module):
            return f"{named.format(*found.groups())}.{leaf}"
    return None
