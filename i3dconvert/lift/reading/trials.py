"""The sizes at which a network is run a second time, and tried."""

from __future__ import annotations


def others(height: int, width: int) -> list[tuple[int, int]]:
    """Return the heights and widths of which the second run has the first that the network accepts."""
    return [(2 * height, 2 * width + width // 2), (2 * height, 3 * width), (2 * height, 2 * width)]


def trials(height: int, width: int, free: bool) -> list[tuple[int, tuple[int, int]]]:
    """Return the numbers of images and the sizes at which free axes are tried."""
    if not free:
        return [(1, (height, width)), (16, (height, width))]
    return [
        (1, (height, width)),
        (3, (height + 1 + height % 2, width + 3 + width % 2)),
        (2, (max(height // 2, 1), max(width // 4, 1))),
        (16, (4 * height, 4 * width)),
    ]
