"""Count the 2D network's convolutions that became 3D, and say why others stay 2D."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.canonical import function_name
from i3dconvert.lift.computed import CLASSES
from i3dconvert.lift.counterparts import full_name
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.reading import Reading, one_each, rows


@dataclass(frozen=True)
class Convolutions:
    """Counts of the 2D kernels that convolve images, each counted once, including those called by functions."""

    run: int = 0
    lifted: int = 0
    calls: int = 0
    """The number of calls with them."""
    kept: tuple[tuple[str, str], ...] = ()
    """Those that stay 2D, named after the layer that holds the kernel or calls the function, with the reason."""

    def __str__(self) -> str:
        calls = f" ({self.calls} calls)" if self.calls > self.run else ""
        return f"{self.lifted} of {self.run} convolution{'s' * (self.run != 1)}{calls} became 3D"

    def lines(self) -> list[str]:
        """Return the count and each convolution that stays 2D, as text."""
        warning = "; NONE of them sees time" if self.run and not self.lifted else ""
        return [f"{self}{warning}", *(f"{name} stays 2D: {reason}" for name, reason in self.kept)]


def convolutions(
    traced: Reading, lifted: Mapping[str, nn.Module], flat: Collection[str], functions: Mapping[fx.Node, str]
) -> Convolutions:
    """Count a network's convolutions; `lifted` are its layers, and those in `flat` have inputs other than images.

    PyTorch's dispatcher counts how many the network runs (`Reading.kernels`); those that the graph does not show count
    as 2D. `functions` says why calls of functions stay 2D, and nothing for those that became 3D.
    """
    found: dict[str, str] = {}
    names: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        if (module := traced.module(node)) is not None:
            name = str(node.target)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or full_name(module).endswith(".BlurPool2d"):
                is_3d = type(lifted.get(name)) is not type(module) and name in lifted
                found[name] = "" if is_3d else found.get(name) or _why_flat(node, name in flat)
        elif layout.operation(node) in CLASSES:
            kernel, scope = layout.argument(node, "weight", 1), str(facts_of(node)["scope"] or node.name)
            name = names.setdefault(kernel, function_name(node) if scope in found else scope)
            found[name] = found.get(name) or functions.get(node, "it is part of an attention")
    kept = [(name, reason) for name, reason in found.items() if reason]
    unseen = traced.kernels.run - len(found)
    if unseen > 0:
        kept.append(("the network", f"{unseen} run inside unchanged steps"))
    became_3d = min(len(found), traced.kernels.run) - sum(map(bool, found.values()))
    return Convolutions(traced.kernels.run, became_3d, traced.kernels.calls, tuple(kept))


def _why_flat(node: fx.Node, flat: bool) -> str:
    """Return why a call of a layer stays 2D; `flat` if some call of it is not with one image of the clip alone."""
    image, *others = (*node.args, *node.kwargs.values())
    if not flat or not isinstance(image, fx.Node) or not rows(image):
        return "its input does not vary with the clip"
    if others:
        return "it is called with more than one input"
    if not one_each(facts_of(image)["value"], facts_of(image)["batch"]):
        return "its input has several rows for each frame (windows, heads), which are not images grouped by frame"
    return "another call of it has another input than one image of the clip"
