"""Two-stream I3D (Carreira & Zisserman, arXiv:1705.07750): one network for the frames, one for their motion.

    python examples/two_stream.py VIDEO [--weights googlenet-1378be20.pth] [--classes N]

Both are inflated from the same GoogLeNet. The second one's input is the optical flow (TV-L1, clipped to 20 pixels): its
first kernels are the mean over RGB, as in cross-modality pretraining (arXiv:1608.00859), which `i3dconvert verify`
checks. The output is the mean of both streams' scores. ImageNet's weights never saw flow: train the second stream.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from classify_video import read_frames
from PIL import Image
from skimage.registration import optical_flow_tvl1
from torch import Tensor, nn

import i3dconvert

FRAMES, SIZE, MOST_PIXELS = 16, 224, 20.0


class TwoStream(nn.Module):
    """Late fusion: the mean of the scores of both streams."""

    def __init__(self, rgb: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.rgb, self.flow = rgb, flow

    def forward(self, clip: Tensor, flow: Tensor) -> Tensor:
        """Return scores `(N, K)` for frames `(N, 3, T, H, W)` and flow `(N, 2, T, H, W)`."""
        scores: Tensor = (self.rgb(clip) + self.flow(flow)) / 2
        return scores


def seen(images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Return the first T of T + 1 frames, uint8 `(1, T, H, W, 3)`, and the flow to the next, `(1, 2, T, H, W)`."""
    frames = [np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in images]
    grey = [frame.mean(2, dtype=np.float32) / 255 for frame in frames]
    moved = [optical_flow_tvl1(before, after, num_warp=1, num_iter=5) for before, after in pairwise(grey)]
    flow = np.stack(moved, 1)[::-1].clip(-MOST_PIXELS, MOST_PIXELS) / MOST_PIXELS  # x before y, from -1 to 1
    return torch.from_numpy(np.stack(frames[:-1]))[None], torch.from_numpy(flow.astype(np.float32))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--classes", type=int, default=400)
    options = parser.parse_args()
    given = {"weights": options.weights, "num_classes": options.classes}
    rgb = i3dconvert.inflate("googlenet", **given)
    flow = i3dconvert.inflate("googlenet", in_channels=2, **given)
    network = TwoStream(rgb, flow).eval()
    frames, movement = seen(read_frames(options.video, FRAMES + 1))
    with torch.no_grad():
        scores = network(i3dconvert.origin_of(rgb).preprocessing.encode(frames), movement)
    most = float(movement.abs().max()) * MOST_PIXELS
    print(f"frames {tuple(frames.shape)}, flow {tuple(movement.shape)} of up to {most:.1f} pixels")
    print(f"scores {tuple(scores.shape)}")


if __name__ == "__main__":
    main()
