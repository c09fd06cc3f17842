"""Forward equality: on a replicated image, the 3D network's output equals the 2D network's on the image."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from i3dconvert.comparison.report import Check
from i3dconvert.comparison.taps import TapByTap


def replicated(images: Tensor, frames: int) -> Tensor:
    """Repeat images `(N, C, H, W)` to still clips `(N, C, frames, H, W)`."""
    return images.unsqueeze(2).repeat(1, 1, frames, 1, 1)


class Narrowing(TorchFunctionMode):
    """Records the first function that takes float64 and returns less: networks that compute in float32 whatever the
    type of their weights (such as LayerNormFp32) can't meet float64's tolerance."""

    found: str | None = None

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None and isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float16):
            wide = any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in args)
            self.found = getattr(func, "__name__", str(func)) if wide else None
        return result


@contextmanager
def evaluating(
    module: nn.Module, dtype: torch.dtype, stored_as: Mapping[str, Tensor] | None = None, device: str = "cpu"
) -> Iterator[nn.Module]:
    """Run `module` in eval mode on `device` with floating-point tensors in `dtype`; afterwards restore it bit for bit.

    Caches that it keeps between evaluations (LeViT's biases) are cleared at both ends, and what its code writes into
    attributes and buffers is undone. With `stored_as`, a state dict, each tensor is first rounded to its dtype there.
    """
    held: Held = {}
    for one in module.modules():
        _hold(vars(one), held)
    buffers = {id(buffer) for buffer in module.buffers()}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    originals = {name: tensor.data for name, tensor in tensors.items()}
    try:
        module.train()
        module.eval()
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                stored = stored_as[name].dtype if stored_as is not None and name in stored_as else tensor.dtype
                tensor.data = tensor.data.to(stored).to(device, dtype)
            else:
                tensor.data = tensor.data.to(device)
            if id(tensor) in buffers:  # code may write into it
                tensor.data = tensor.data.clone()
        with torch.no_grad(), TapByTap(), _full_float32():
            yield module
    finally:
        module.train()
        for name, tensor in tensors.items():
            tensor.data = originals[name]
        for container, content in held.values():
            _refill(container, content)


Held = dict[int, tuple[Any, list[Any]]]
"""Containers by identity, with what they contain."""


def _hold(value: Any, held: Held) -> None:
    """Add each dict, list and set in `value` to `held`, however deep, also in tuples."""
    todo = [value]
    while todo:
        one = todo.pop()
        if type(one) in _CONTAINERS and id(one) not in held:
            held[id(one)] = one, _content(one)
            todo += one.values() if isinstance(one, dict) else one


def _content(container: Any) -> list[Any]:
    """Return the items of a container, the keys and values of a dict in turns."""
    return [one for item in container.items() for one in item] if isinstance(container, dict) else list(container)


def _refill(container: Any, content: list[Any]) -> None:
    """Give a container its content again, if that has changed."""
    now = _content(container)
    if len(now) == len(content) and all(one is other for one, other in zip(now, content, strict=True)):
        return
    container.clear()
    if isinstance(container, dict):
        for key, value in zip(content[::2], content[1::2], strict=True):
            container[key] = value
    else:
        (container.update if isinstance(container, set) else container.extend)(content)


_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set, tuple)


@contextmanager
def given(model: nn.Module, constants: Mapping[str, Any]) -> Iterator[nn.Module]:
    """Call `model` with `constants` besides the image."""
    if not constants:
        yield model
        return
    handle = model.register_forward_pre_hook(lambda _, args, named: (args, {**constants, **named}), with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


@contextmanager
def _full_float32() -> Iterator[None]:
    """Turn off TF32, in which GPUs multiply float32 with ten bits of mantissa."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def outputs(value: Any) -> list[Tensor]:
    """Return the tensors of an output: itself, or the members of a list, tuple or dict in order."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def beside(reference: Tensor, value: Tensor) -> Tensor:
    """Return the 2D `reference` with an axis for the time that the 3D `value` kept: axis 2 in images, 1 elsewhere."""
    if value.dim() == reference.dim():
        return reference
    return reference.unsqueeze(2 if reference.dim() == 4 else 1)


def relative_error(reference: Tensor, value: Tensor) -> float:
    """Return max |value − reference| / max |reference|; NaN if either is not finite. Shapes must broadcast."""
    reference, value = reference.detach().double(), value.detach().double()
    return float((value - reference).abs().max() / reference.abs().max())


_DECIDED = 100
"""How many times the tolerance is the share of indices and flags that may differ, where rounding decides them."""


def _share_of_others(reference: Tensor, value: Tensor) -> float:
    return float((reference != value).double().mean())


def check_outputs(name: str, reference: list[Tensor], value: list[Tensor], tolerance: float) -> Check:
    """Compare the outputs of two networks pairwise and report the largest error."""
    if len(reference) != len(value):
        return Check(name, False, f"{len(value)} outputs instead of {len(reference)}", tolerance=tolerance)
    worst = 0.0
    for ours, theirs in zip(value, reference, strict=True):
        wide = beside(theirs, ours)
        broadcast = all(a in (b, 1) for a, b in zip(wide.shape, ours.shape, strict=False))
        if wide.dim() != ours.dim() or not broadcast:
            return Check(name, False, f"output {tuple(ours.shape)}, not {tuple(theirs.shape)}", tolerance=tolerance)
        counts = not theirs.is_floating_point() and not theirs.is_complex()
        if not counts and not bool(theirs.abs().max() > 0):
            return Check(name, False, "the 2D network's output is zero or not finite, so the check proves nothing")
        error = _share_of_others(wide, ours) / _DECIDED if counts else relative_error(wide, ours)
        if not error <= tolerance:
            differ = f"{error * _DECIDED:.2%} of the indices or flags differ, more than {tolerance * _DECIDED:.0e}"
            found = differ if counts else f"relative error {error:.2g} > {tolerance:.0e}"
            return Check(name, False, found, error, tolerance)
        worst = max(worst, error)
    if reference and all(one.dtype == torch.bool and bool(one.all() == one.any()) for one in reference):
        return Check(name, False, "the 2D network's flags are all the same, so the check proves nothing")
    return Check(name, True, f"relative error {worst:.1e} ≤ {tolerance:.0e}", worst, tolerance)


@dataclass(frozen=True)
class OwnRounding:
    """The rounding error of the 2D network itself, which no 3D network can fall below."""

    allowed: float = 0.0
    note: str = ""

    @classmethod
    def of_narrowing(cls, function: str | None) -> OwnRounding:
        """Return the tolerance for a float64 run in which `function` returned float32."""
        if function is None:
            return cls()
        return cls(1e-5, f"the network itself computes in float32 ({function}), whatever the type of its weights")

    @classmethod
    def between(cls, exact: list[Tensor] | None, rounded: list[Tensor]) -> OwnRounding:
        """Return the tolerance for a float32 run: four times the 2D network's error against an equal float64 run.

        Two networks that round differently are each that far from the exact value, and half of it is reserve.
        """
        if exact is None:
            return cls()
        own = max(relative_error(a, b) for a, b in zip(exact, rounded, strict=True))
        return cls(4 * own, f"the 2D network's own rounding error is {own:.1e}")

    def second_look(self, check: Check, reference: list[Tensor], value: list[Tensor]) -> Check:
        """Return `check`, or a passed one that names this rounding if the error is within it."""
        again = check_outputs(check.name, reference, value, self.allowed)
        return replace(again, detail=f"{again.detail}; {self.note}") if again.passed else check
