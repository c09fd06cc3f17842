"""Forward equality: what the 3D network gives on a replicated image is what the 2D network gives on the image."""

from __future__ import annotations

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
    """`(N, C, H, W)` → the boring video `(N, C, frames, H, W)`."""
    return images.unsqueeze(2).repeat(1, 1, frames, 1, 1)


class Narrowing(TorchFunctionMode):
    """Notes the first function that is given float64 and gives less: a network that computes in float32 whatever its
    weights are (LayerNormFp32, say) can't be held to float64's rounding."""

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
    """`module` in eval mode on `device`, its floating-point tensors in `dtype`; as it was afterwards, to the bit.

    What it keeps from one evaluation to the next (LeViT its biases) is forgotten at both ends: training begins anew.
    With `stored_as`, a state dict, each tensor is first rounded to the dtype that it has there.
    """
    modes = {m: m.training for m in module.modules()}
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
        with torch.no_grad(), TapByTap(), _full_float32():
            yield module
    finally:
        module.train()
        for name, tensor in tensors.items():
            tensor.data = originals[name]
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def given(model: nn.Module, constants: Mapping[str, Any]) -> Iterator[nn.Module]:
    """`model`, called with `constants` beside the image."""
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
    """GPUs multiply float32 as TF32, with ten bits of mantissa, unless told not to."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def outputs(value: Any) -> list[Tensor]:
    """The tensors of an output: itself, or the members of a list, tuple or dict in order."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def beside(reference: Tensor, value: Tensor) -> Tensor:
    """The 2D `reference` with an axis for the time that the 3D `value` kept: at 2 in images, at 1 elsewhere."""
    if value.dim() == reference.dim():
        return reference
    return reference.unsqueeze(2 if reference.dim() == 4 else 1)


def relative_error(reference: Tensor, value: Tensor) -> float:
    """max |value − reference| / max |reference|, NaN where either is not finite. Shapes must broadcast."""
    reference, value = reference.detach().double(), value.detach().double()
    return float((value - reference).abs().max() / reference.abs().max())


def check_outputs(name: str, reference: list[Tensor], value: list[Tensor], tolerance: float) -> Check:
    """Compare two networks' outputs pairwise; the worst counts."""
    if len(reference) != len(value):
        return Check(name, False, f"{len(value)} outputs instead of {len(reference)}", tolerance=tolerance)
    worst = 0.0
    for ours, theirs in zip(value, reference, strict=True):
        wide = beside(theirs, ours)
        broadcast = all(a in (b, 1) for a, b in zip(wide.shape, ours.shape, strict=False))
        if wide.dim() != ours.dim() or not broadcast:
            return Check(name, False, f"output {tuple(ours.shape)} beside {tuple(theirs.shape)}", tolerance=tolerance)
        if not bool(theirs.abs().max() > 0):
            return Check(name, False, "the 2D network's output is zero or not finite, which proves nothing")
        error = relative_error(wide, ours)
        if not error <= tolerance:
            return Check(name, False, f"relative error {error:.2g} > {tolerance:.0e}", error, tolerance)
        worst = max(worst, error)
    return Check(name, True, f"relative error {worst:.1e} ≤ {tolerance:.0e}", worst, tolerance)


@dataclass(frozen=True)
class OwnRounding:
    """What the 2D network's own arithmetic leaves open, so that no 3D network could come nearer to it."""

    allowed: float = 0.0
    note: str = ""

    @classmethod
    def of_narrowing(cls, function: str | None) -> OwnRounding:
        """Return the tolerance for a float64 run in which `function` returned float32."""
        if function is None:
            return cls()
        return cls(1e-5, f"the network itself computes in float32 ({function}), whatever its weights are in")

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
        """`check`, or where it failed by no more than this rounding, one that passed and says why."""
        again = check_outputs(check.name, reference, value, self.allowed)
        return replace(again, detail=f"{again.detail}; {self.note}") if again.passed else check
