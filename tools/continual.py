"""Compare a stream with the same network written by hand with continual-inference's layers.

    python -m tools.continual

The network is a ResNet-18 with three taps in each 3×3 convolution, all in use. Both compute one new frame at a
time, and their scores are compared first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import continual as co
import torch
from torch import Tensor, nn

import i3dconvert

STEPS, WARM = 12, 60
TOLERANCE = 1e-4


def convolution(network: nn.Module, name: str) -> nn.Module:
    """Return continual-inference's form of the 3D convolution `name`, with its weights."""
    ours = network.get_submodule(name)
    kernel, stride, padding = (tuple(getattr(ours, key)) for key in ("kernel_size", "stride", "padding"))
    theirs = co.Conv3d(ours.in_channels, ours.out_channels, kernel, stride, (kernel[0] // 2, *padding[1:]), bias=False)
    theirs.load_state_dict({"weight": ours.weight})
    return theirs


def block(network: nn.Module, name: str) -> nn.Module:
    """Return a residual block; continual-inference delays the shortcut."""
    layers = [convolution(network, f"{name}.conv1"), network.get_submodule(f"{name}.bn1"), nn.ReLU()]
    layers += [convolution(network, f"{name}.conv2"), network.get_submodule(f"{name}.bn2")]
    if f"{name}.downsample.0.weight" not in network.state_dict():
        return co.Sequential(co.Residual(co.Sequential(*layers)), nn.ReLU())
    shortcut = [convolution(network, f"{name}.downsample.0"), network.get_submodule(f"{name}.downsample.1")]
    return co.Sequential(co.BroadcastReduce(co.Sequential(*shortcut), co.Sequential(*layers)), nn.ReLU())


def by_hand(network: nn.Module) -> nn.Module:
    """Return an inflated ResNet-18 made of continual-inference's layers."""
    stem = [convolution(network, "conv1"), network.get_submodule("bn1"), nn.ReLU()]
    stem += [co.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))]
    blocks = [block(network, f"layer{stage}.{index}") for stage in range(1, 5) for index in range(2)]
    head = co.Linear(512, 1000, channel_dim=1)
    head.load_state_dict(network.get_submodule("fc").state_dict())
    return co.Sequential(*stem, *blocks, co.Lambda(lambda maps: maps.mean((-1, -2))), head).eval()


def milliseconds(step: Callable[[], object]) -> float:
    """Return the median time of a step."""
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:]) * 1000


@torch.no_grad()
def main() -> None:
    """Compare the scores of a video, then print the time of a frame in both."""
    network = i3dconvert.inflate(
        "resnet18", "uniform", "mean", padding="zeros", weights="random", temporal_pool="none"
    ).eval()
    hand, flow = by_hand(network), i3dconvert.stream(network)
    video = torch.randn(WARM, 1, 3, 1, 224, 224)
    state, ours, theirs = flow.start(1, 224, 224), Tensor(), Tensor()
    for frame in video:
        ours, state = flow.step(frame, state)
        theirs = hand.forward_step(frame[:, :, 0])
    error = (ours[:, 0] - theirs).abs().max() / theirs.abs().max()
    if error > TOLERANCE:
        raise SystemExit(f"the scores differ: relative error {error:.1e}")

    def step() -> None:
        nonlocal state
        _, state = flow.step(video[0], state)

    one, other = milliseconds(step), milliseconds(lambda: hand.forward_step(video[0, :, :, 0]))
    print(f"stream {one:.0f} ms, continual-inference {other:.0f} ms: {other / one:.2f}, relative error {error:.1e}")


if __name__ == "__main__":
    main()
