"""Compare both networks layer by layer, with hooks on equal names, to find the first layer that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import evaluating, relative_error, replicated
from i3dconvert.comparison.report import LayerError
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.tree.calling import Tree

_BLOCKS = (Tree, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def compare_layers(
    model: nn.Module,
    network: Network3d,
    images: Tensor,
    frames: int,
    dtype: torch.dtype,
    tolerance: float,
    device: str = "cpu",
) -> list[LayerError]:
    """Return the error of every layer at its first call, in order, for replicated `images` `(N, C, H, W)`.

    A layer is a module of both networks that is not a block of others. Stops where the 3D network fails. Holds the 2D
    network's values of all layers.
    """
    ours = dict(network.named_modules())
    names = [name for name, _ in model.named_modules() if name in ours and not _is_block(ours[name])]
    images = images.to(device, dtype)
    values: dict[str, Tensor] = {}
    found: dict[str, LayerError] = {}
    entered = ""

    def keep(name: str, value: Tensor) -> None:
        values.setdefault(name, value.detach().clone())

    def compare(name: str, value: Tensor) -> None:
        if name in values and name not in found:
            error = _error(values[name], value.detach(), len(images))
            diverges = error is None or not error <= tolerance
            operation = type(model.get_submodule(name)).__name__
            found[name] = LayerError(name, operation, tuple(value.shape), error, diverges)

    def enter(name: str) -> None:
        nonlocal entered
        entered = name

    with evaluating(model, dtype, network.state_dict(), device), evaluating(network, dtype, device=device):
        with _hooked(model, names, keep):
            model(images)
        with _hooked(network, names, compare, enter):
            try:
                network(replicated(images, frames))
            except Exception as error:  # noqa: BLE001 - an exchanged module may raise anything
                reason = f"fails: {str(error).splitlines()[0]}"
                found[entered] = LayerError(entered, reason, (), None, True)
    return list(found.values())


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, _BLOCKS) and any(module.children())


@contextmanager
def _hooked(
    network: nn.Module,
    names: list[str],
    leave: Callable[[str, Tensor], None],
    enter: Callable[[str], None] = lambda name: None,
) -> Iterator[None]:
    """Call `enter` with each module's name, and `leave` also with its output if that is a tensor."""

    def add(name: str, module: nn.Module) -> None:
        def after(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                leave(name, output)

        stack.callback(module.register_forward_pre_hook(lambda module, args: enter(name)).remove)
        stack.callback(module.register_forward_hook(after).remove)

    with ExitStack() as stack:
        for name in names:
            add(name, network.get_submodule(name))
        yield


def _error(image: Tensor, clip: Tensor, images: int) -> float | None:
    """Return the relative error of a clip's value, absolute if the image's is 0; None if no axis can be that of time.

    The least of the errors of all places that time may have: only a layer that differs has none that is small.
    """
    if not image.any():
        return float(clip.abs().max())
    return min((relative_error(*pair) for pair in _pairs(image, clip, images)), default=None)


def _pairs(image: Tensor, clip: Tensor, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both values with axes that broadcast, for each place that time may have.

    Time is an axis of its own, or frames are rows beside the images', inside or outside of other rows (heads, windows).
    """
    if clip.shape == image.shape:
        yield image, clip
    if clip.dim() == image.dim() + 1:
        for axis in range(clip.dim()):
            if clip.shape[:axis] + clip.shape[axis + 1 :] == image.shape:
                yield image.unsqueeze(axis), clip
    elif clip.dim() == image.dim():
        others = [axis for axis in range(clip.dim()) if clip.shape[axis] != image.shape[axis]]
        if len(others) == 1 and clip.shape[others[0]] % image.shape[others[0]] == 0:
            axis, rows = others[0], image.shape[others[0]]
            yield image.unsqueeze(axis + 1), torch.unflatten(clip, axis, (rows, -1))
            if rows % images == 0:
                once, often = (images, 1, -1), (images, -1, rows // images)
                yield torch.unflatten(image, axis, once), torch.unflatten(clip, axis, often)
