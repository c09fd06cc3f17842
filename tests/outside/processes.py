"""Two processes that train one network: what `test_trainers.py` spawns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import i3dconvert


def sharded(network: Any) -> Any:
    """FSDP2, block by block."""
    for block in network.blocks:
        fully_shard(block)
    fully_shard(network)
    return network


def wrapped(network: Any) -> Any:
    """FSDP1, by the class of a block."""
    made = FullyShardedDataParallel(
        network, auto_wrap_policy=ModuleWrapPolicy({type(network.blocks[0])}), device_id=torch.device("cpu")
    )
    units = sum(isinstance(module, FullyShardedDataParallel) for module in made.modules())
    assert units == 1 + len(network.blocks)
    return made


WAYS = {"DDP": DistributedDataParallel, "FSDP2": sharded, "FSDP1": wrapped}


def losses(network: Any, clips: Tensor, labels: Tensor, steps: int = 3) -> list[float]:
    """The loss of each step; mean over all processes."""
    optimizer, found = torch.optim.SGD(network.parameters(), 0.1), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(clips), labels)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        found.append(mean.item())
    return found


def train(rank: int, way: str, network: nn.Module, clips: Tensor, labels: Tensor, folder: Path) -> None:
    """One of two processes; the first writes what it saw."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    network = copy.deepcopy(network)  # what is spawned with shares its memory
    dist.barrier()
    model = WAYS[way](network)
    found = losses(model, clips[rank::2], labels[rank::2])
    assert i3dconvert.frames_left(network, 4) == 4
    if rank == 0:
        torch.save(found, folder / "losses")
    dist.destroy_process_group()
