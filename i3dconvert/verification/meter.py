"""The progress of a verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from i3dconvert.progress import Progress

_COSTS = {torch.float64: 1.0, torch.float32: 0.4}
"""Time of a forward pass, relative to float64."""


def cost(dtypes: Sequence[torch.dtype], images: int) -> float:
    """Return the time of the forward passes on `images` images, in units of one image in float64."""
    return images * sum(_COSTS.get(dtype, 1.0) for dtype in dtypes)


class Meter:
    """Counts the layers that have run and reports their share of `total` to `progress`."""

    def __init__(self, progress: Progress, network: nn.Module, total: float) -> None:
        self._progress, self._total, self._done = progress, total, 0.0
        self._layers = [module for module in network.modules() if not list(module.children())]

    @contextmanager
    def during(self, step: str, cost: float, passes: int) -> Iterator[None]:
        """Report the progress of a step that costs `cost` of the total, in `passes` through the network."""
        ran, calls = 0, max(passes * len(self._layers), 1)

        def count(*_: Any) -> None:
            nonlocal ran
            ran += 1
            self._progress(step, (self._done + cost * min(ran / calls, 1.0)) / self._total)

        self._progress(step, self._done / self._total)
        hooks = [layer.register_forward_hook(count) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._done += cost
