"""Assign tensors to a network, and check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from i3dconvert.errors import WeightsError
from i3dconvert.weights.hashing import Digest, Stream, one_thread


class NoInit(TorchFunctionMode):
    """While active, networks are built with uninitialised parameters; a checkpoint fills them.

    Memory that is not written to is not allocated, so building costs time and memory for the buffers only.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and name.endswith("_") and not name.endswith("__"):
            return target.requires_grad_(*args[1:], **kwargs) if name == "requires_grad_" else target
        return func(*args, **kwargs)


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Assign the tensors of `state` to `model`, without a copy. Raises `WeightsError` with the keys that do not fit."""
    expected = model.state_dict()
    if odd := [key for key, tensor in state.items() if key in expected and _is_odd(tensor, expected[key])]:
        kinds = [f"{key} in {str(state[key].dtype).removeprefix('torch.')}" for key in odd]
        raise WeightsError(f"{where} does not hold floating-point weights: {some('such', kinds)}")
    try:
        outcome = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError:
        wrong = [k for k, v in state.items() if k in expected and v.shape != expected[k].shape]
        if any(state[k].dim() == expected[k].dim() + 1 for k in wrong):
            raise WeightsError(f"{where} holds 3D weights; give those of the 2D network") from None
        shapes = [f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong]
        raise WeightsError(f"{where} does not fit the network: {some('mis-shaped', shapes)}") from None
    problems = [
        some(kind, keys)
        for kind, keys in (("missing", outcome.missing_keys), ("unexpected", outcome.unexpected_keys))
        if keys
    ]
    if problems:
        adapters = any(".lora_" in key for key in outcome.unexpected_keys)
        hint = "; merge its adapters first: network = tuned.merge_and_unload()" if adapters else ""
        raise WeightsError(f"{where} does not fit the network: {'; '.join(problems)}{hint}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state dict's tensors by their names."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _is_odd(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether integers, complex numbers or fewer than 16 bits replace a floating-point weight."""
    return expected.is_floating_point() and (not tensor.is_floating_point() or tensor.element_size() < 2)


@one_thread()
def inspect(state: Mapping[str, Tensor], where: str, allow_nonfinite: bool = False, mapped: bool = False) -> str:
    """Return the SHA-256 of tensors just read; raises `WeightsError` for the first that holds a NaN or an infinity."""
    total, stream = Digest(), Stream(mapped)
    for key, tensor in state.items():
        total.add(key, tensor)
        if not allow_nonfinite and tensor.is_floating_point() and not _is_finite(tensor):
            raise WeightsError(f"{where} holds NaN or infinite values, first in {key}; --allow-nonfinite accepts them")
        stream.passed(tensor)
    return total.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. A sum shows NaN and infinities; if it overflows, each value is checked."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


_LONGEST = 120
"""The most characters of a name in a message."""


def some(kind: str, items: list[str]) -> str:
    count = f"{len(items)} {kind} key{'s' if len(items) != 1 else ''}"
    return f"{count} ({', '.join(item[:_LONGEST] for item in items[:3])}{', …' if len(items) > 3 else ''})"


def classes_in(state: Mapping[str, Tensor], model: nn.Module, classes: int) -> int | None:
    """Return the number of classes of `state` if only the head's number differs from `model`; else None."""
    expected = model.state_dict()
    counts = {
        (tensor.shape[0], tuple(tensor.shape[1:]) == tuple(expected[key].shape[1:]), expected[key].shape[0])
        for key, tensor in state.items()
        if key in expected and tensor.dim() and tensor.shape != expected[key].shape
    }
    if len(counts) != 1:
        return None
    ((count, same_otherwise, ours),) = counts
    return count if same_otherwise and ours == classes else None
