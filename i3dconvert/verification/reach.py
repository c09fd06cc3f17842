"""Check that a frame's output depends on other frames if the recipe has attention over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from i3dconvert.comparison.forward import evaluating, outputs, relative_error
from i3dconvert.comparison.report import Check
from i3dconvert.lift import layout
from i3dconvert.lift.attention.divided import TimeAttention
from i3dconvert.lift.network import Network3d, frames_left, inflation_of
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Attending
from i3dconvert.verification.budget import legal_lengths

NAME = "attention over time"


def check_reach(network: Network3d, image: Tensor, dtype: torch.dtype, device: str = "cpu") -> Check | None:
    """Change the second frame of a moving clip and compare the output of the first; `image` is `(1, C, H, W)`.

    Returns None if no attention sees other frames, or the recipe leaves only one frame.
    """
    if not any(isinstance(layer.temporal, Attending) for layer in inflation_of(network).layers):
        return None
    lengths = legal_lengths(network, max(16, inflation_of(network).minimum_frames))
    frames = next((frames for frames in reversed(lengths) if frames_left(network, frames) > 1), None)
    if frames is None:
        return None
    stride = frames // frames_left(network, frames)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, image.shape[1], frames, *image.shape[2:], generator=generator).to(device, dtype)
    other = clip.clone()
    other[:, :, stride:] = image.to(device, dtype).unsqueeze(2)
    with evaluating(network, dtype, device=device):
        _train_a_little(network)  # until `evaluating` puts its tensors back
        before, after = (_first_frame(network, moving) for moving in (clip, other))
    moved = max(relative_error(a, b) for a, b in zip(before, after, strict=True))
    if not moved > torch.finfo(dtype).eps:
        return Check(NAME, False, "a frame's output does not depend on the other frames")
    return Check(NAME, True, f"changing a frame changes another's output by {moved:.1e}")


def _train_a_little(network: Network3d) -> None:
    """Set the attentions over time that start as zeros to what a first training step could produce."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, TimeAttention) and not bool(module.dense.weight.any()):
            weight = module.dense.weight
            weight.data = torch.randn(weight.shape, generator=generator).to(weight) * len(weight) ** -0.5


def _first_frame(network: Network3d, clip: Tensor) -> list[Tensor]:
    """Return the network's output for a clip's first frame, before any mean over time."""

    class Keeping(fx.Interpreter):
        kept: list[Tensor]

        def run_node(self, n: fx.Node) -> Any:
            if n.target is layout.mean_over_time:
                self.kept.append(self.env[n.all_input_nodes[0]][:1])
            return super().run_node(n)

    keeping = Keeping(network, graph=graph_of(network))
    keeping.kept = []
    found = outputs(keeping.run(clip))
    if keeping.kept:
        return keeping.kept
    return [tensor[:, :, 0] if tensor.dim() == 5 else tensor[:, 0] for tensor in found]
