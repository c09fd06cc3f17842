"""Fine-tune an inflated network on a small task, and compare it with the same network from scratch.

    python examples/finetune.py [FOLDER] [--steps N]
    accelerate launch --num_processes 2 --cpu examples/finetune.py
    torchrun --nproc-per-node 2 examples/finetune.py [--fsdp]

A small 2D network learns scikit-learn's digits from still images. Then two 3D networks learn to recognise moving
digits and their direction (which a still can't show) from the same clips in the same order: one inflated from the 2D
network, one from scratch. Both curves are printed and drawn, and the fine-tuned network is exported to ONNX. With
--fsdp, each process holds a part of every layer's weights; the sharded checkpoint is read back in one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import onnxruntime
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import i3dconvert

FRAMES, SIZE, DIGITS = 8, 32, 10
STEPS = {"up": (-2, 0), "down": (2, 0), "left": (0, -2), "right": (0, 2)}
"""Pixels per frame."""
BATCH, EVALUATIONS = 32, 10

Curve = list[tuple[int, float, float]]
"""Steps, and the shares of correct digits and directions on held-out clips."""


def still_network() -> nn.Module:
    """Return the 2D network for grey images of 32×32."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, DIGITS))


def digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """Return images `(N, 16, 16)` from 0 to 1 and their labels; a fifth is held out."""
    images, labels = load_digits(return_X_y=True)
    shown = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16
    mine = (torch.arange(len(shown)) % 5 == 0) == held_out
    return shown[mine].repeat_interleave(2, 1).repeat_interleave(2, 2), torch.tensor(labels)[mine]


def stills(count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Return images `(count, 1, 32, 32)`, each with a digit at a random place, and their labels."""
    clips, labels = clips_of_digits(count, held_out)
    return clips[:, :, 0], labels[:, 0]


def clips_of_digits(count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Return clips `(count, 1, 8, 32, 32)` of a moving digit, and labels `(count, 2)`: digit and direction."""
    images, shown = digits(held_out)
    chance = torch.Generator().manual_seed(int(held_out))
    clips = torch.zeros(count, 1, FRAMES, SIZE, SIZE)
    labels = torch.zeros(count, 2, dtype=torch.long)
    span = 2 * (FRAMES - 1)
    for clip, label in zip(clips, labels, strict=True):
        index, direction = (int(torch.randint(most, (), generator=chance)) for most in (len(images), len(STEPS)))
        steps = list(STEPS.values())[direction]
        free = [SIZE - images.shape[1] - span * bool(step) for step in steps]
        starts = [int(torch.randint(room + 1, (), generator=chance)) for room in free]
        starts = [start + span * (step < 0) for start, step in zip(starts, steps, strict=True)]
        for frame in range(FRAMES):
            y, x = (start + step * frame for start, step in zip(starts, steps, strict=True))
            clip[0, frame, y : y + 16, x : x + 16] = images[index]
        label[0], label[1] = shown[index], direction
    return clips, labels


def train_stills(path: Path, steps: int) -> None:
    """Train the 2D network and write its weights."""
    torch.manual_seed(0)
    network = still_network()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    images, labels = stills(steps * BATCH, held_out=False)
    for batch, shown in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(batch), shown))
        optimizer.step()
    network.eval()
    images, labels = stills(500, held_out=True)
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean()
    print(f"the 2D network after {steps} steps: {right:.0%} of the held-out stills")
    torch.save(network.state_dict(), path)


def from_scratch(network: nn.Module) -> nn.Module:
    """Return the same network with torch's initialisation."""
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            cast(Any, module).reset_parameters()
    return network


def sharded(network: nn.Module) -> nn.Module:
    """Return the same network with each layer's weights sharded over all processes."""
    for layer in network.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    fully_shard(network)
    return network


def save_sharded(network: nn.Module, folder: Path) -> None:
    """Write each process's part."""
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)  # statistics of batches: every process has its own
    save({"network": get_model_state_dict(network)}, checkpoint_id=folder)


def load_sharded(network: i3dconvert.Network3d, folder: Path) -> i3dconvert.Network3d:
    """Load what all processes wrote into a whole network, in this process only."""
    state = network.state_dict()
    load({"network": state}, checkpoint_id=folder, no_dist=True)
    network.load_state_dict(state)
    return network


def finetune(accelerator: Accelerator, network: nn.Module, steps: int, fsdp: bool) -> Curve:
    """Train on moving digits; the clips, their order and the number of steps are the same for every network."""
    data = TensorDataset(*clips_of_digits(steps * BATCH, held_out=False))
    loader = DataLoader(data, BATCH // accelerator.num_processes)
    model = sharded(network.train()) if fsdp else accelerator.prepare(network.train())
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer, loader = accelerator.prepare(optimizer, loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    curve = [(0, *score(network))]
    for step, (clips, labels) in enumerate(loader, 1):
        optimizer.zero_grad()
        logits = model(clips)
        loss = F.cross_entropy(logits[:, :DIGITS], labels[:, 0]) + F.cross_entropy(logits[:, DIGITS:], labels[:, 1])
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        if step % max(steps // EVALUATIONS, 1) == 0:
            curve.append((step, *score(network)))
    return curve


def score(network: nn.Module) -> tuple[float, float]:
    """Return the shares of correct digits and directions on held-out clips."""
    clips, labels = clips_of_digits(256, held_out=True)
    device, training = next(network.parameters()).device, network.training
    with torch.no_grad():
        logits = network.eval()(clips.to(device)).cpu()
    network.train(training)
    return shares(logits, labels)


def shares(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    told = torch.stack((logits[:, :DIGITS].argmax(1), logits[:, DIGITS:].argmax(1)), 1)
    digit, direction = (told == labels).float().mean(0).tolist()
    return digit, direction


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw both curves of each network as SVG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, index, title in zip(figure.subplots(1, 2, sharey=True), (1, 2), ("digit", "direction"), strict=True):
        for name, curve in curves.items():
            axes.plot([point[0] for point in curve], [point[index] for point in curve], marker="o", label=name)
        axes.set(title=title, xlabel="steps", ylabel="correct, on held-out clips")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/finetune"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--fsdp", action="store_true", help="shard the weights over the processes (FSDP2)")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if options.fsdp and not dist.is_initialized():
        parser.error("--fsdp needs several processes: torchrun --nproc-per-node 2 examples/finetune.py --fsdp")

    weights = folder / "stills.pth"
    if accelerator.is_main_process:
        train_stills(weights, options.steps)
    accelerator.wait_for_everyone()

    backbone = f"{Path(__file__).resolve()}:still_network"
    classes = DIGITS + len(STEPS)
    inflate = partial(i3dconvert.inflate, backbone, "uniform", num_classes=classes, size=SIZE)
    inflated, scratch = inflate(weights=str(weights)), from_scratch(inflate(weights="random"))
    curves = {
        name: finetune(accelerator, network, options.steps, options.fsdp)
        for name, network in (("inflated", inflated), ("from scratch", scratch))
    }
    if options.fsdp:
        save_sharded(inflated, folder / "sharded")
    if not accelerator.is_main_process:
        return

    print(f"trained by {accelerator.num_processes} of {BATCH // accelerator.num_processes} clips at a time")
    print("steps   inflated: digit, direction   from scratch: digit, direction")
    for (step, *ours), (_, *theirs) in zip(*curves.values(), strict=True):
        print(f"{step:5}   {ours[0]:15.0%} {ours[1]:10.0%}   {theirs[0]:19.0%} {theirs[1]:10.0%}")
    for index, what in ((1, "digits"), (2, "directions")):
        means = [sum(point[index] for point in curve) / len(curve) for curve in curves.values()]
        last = [curve[-1][index] for curve in curves.values()]
        print(
            f"{what}: inflated {last[0]:.0%}, from scratch {last[1]:.0%} at the end "
            f"({last[0] - last[1]:+.0%}); {means[0] - means[1]:+.0%} over the whole of the curve"
        )
    draw(curves, folder / "curves.svg")

    if options.fsdp:
        inflated = load_sharded(inflate(weights=str(weights)), folder / "sharded")
    checkpoint = folder / "finetuned.safetensors"
    i3dconvert.save(inflated.cpu().eval(), checkpoint, force=True, finetuned=True)
    command = [sys.executable, "-m", "i3dconvert", "export", str(checkpoint), "--onnx", "--force"]
    subprocess.run(command, check=True)
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    clips, labels = clips_of_digits(256, held_out=True)
    digit, direction = shares(torch.from_numpy(session.run(None, {"clip": clips.numpy()})[0]), labels)
    print(f"ONNX: {digit:.0%} of the digits, {direction:.0%} of the directions")


if __name__ == "__main__":
    main()
