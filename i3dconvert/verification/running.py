"""Load the 2D network of a file, and run both networks on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from i3dconvert.checkpoint import Document
from i3dconvert.comparison.forward import evaluating, outputs, replicated
from i3dconvert.errors import I3DError, VerificationError, WeightsError, first_line


def reference_of(document: Document, path: Path, reference: Path | None) -> nn.Module:
    """Return the 2D network that a file was made from, with its weights."""
    if document.finetuned:
        raise VerificationError(f"{path} has fine-tuned weights, so it equals no 2D network")
    if document.origin is None:
        raise VerificationError(
            f"{path} was made from a module in memory; --model PATH.py:NAME names the function or module that builds "
            "it, or verify it in Python: verify(model2d, model3d)"
        )
    try:
        return document.origin.load(reference)
    except WeightsError as error:
        hint = "" if reference or "--reference" in str(error) else "; --reference PATH names a file with the 2D weights"
        raise WeightsError(f"{error}{hint}") from None


def run_both(
    model2d: nn.Module,
    network: nn.Module,
    batches: Sequence[Tensor],
    frames: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of the 2D network on batches of images, and of the 3D network on the replicated images.

    Raises `VerificationError` if a network fails on them.
    """
    batches = [batch.to(device, dtype) for batch in batches]
    with evaluating(model2d, dtype, network.state_dict(), device):
        reference = [run("2D", model2d, batch) for batch in batches]
    with evaluating(network, dtype, device=device):
        value = [run("3D", network, replicated(batch, frames)) for batch in batches]
    return _joined(reference), _joined(value)


def run(which: str, network: nn.Module, given: Tensor) -> list[Tensor]:
    """Return the outputs of the 2D or the 3D network, on the CPU."""
    try:
        return [tensor.cpu() for tensor in outputs(network(given))]
    except I3DError:
        raise
    except Exception as error:  # a user's network may raise anything
        shape = "×".join(map(str, given.shape[1:]))
        reason = first_line(error)
        if isinstance(error, MemoryError) or "allocate" in reason:
            reason = "it needs more memory than there is; reduce --frames or --size"
        elif given.dtype == torch.float64 and "type" in reason:
            reason += "; if its code accepts float32 only, verify in that: --dtype float32"
        raise VerificationError(f"the {which} network fails on an input of {shape}: {reason}") from error


def _joined(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(tensors) if len(tensors) > 1 else tensors[0] for tensors in zip(*parts, strict=True)]
