"""The lifted network as a module, and its filling with inflated weights."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.errors import CheckpointError
from i3dconvert.kernels import Style
from i3dconvert.lift import layout
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.graph import Lifted, lift
from i3dconvert.lift.inflation import Inflation
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.reading import Reading, read
from i3dconvert.recipes import Recipe


class Network3d(fx.GraphModule):
    """An inflated network: an ordinary module on clips `(N, C, T, H, W)` under the 2D network's own key names."""

    @property
    def inflation(self) -> Inflation:
        """What this network was made by."""
        inflation: Inflation = self.meta["i3dconvert"]
        return inflation

    def __deepcopy__(self, memo: Any) -> Network3d:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, Network3d)
        _keep_out_of_state(copied, set(self.state_dict()))
        return copied

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Network3d:
        """The network in a folder, or in a repository on the Hugging Face hub (`options` are huggingface_hub's).

        Raises `CheckpointError`; so do the two methods below, `ExportError` too for a network made in memory.
        """
        network: Network3d = _pretrained().load(str(name), **options)
        return network

    def save_pretrained(self, folder: str | Path, finetuned: bool = False) -> None:
        """Write `model.safetensors`, configuration, preprocessing and a card into `folder`."""
        _pretrained().Pretrained(self, finetuned).save_pretrained(folder)

    def push_to_hub(self, name: str, finetuned: bool = False, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the hub's repository `name`; returns its address."""
        address: str = _pretrained().Pretrained(self, finetuned).push_to_hub(name, **options)
        return address

    @property
    def gives_scores(self) -> bool:
        """Whether it gives a row of scores (or features) for a clip, and no maps."""
        output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        return getattr(output, "target", None) in (layout.mean_over_time, layout.over_time)

    def frames_left(self, frames: int) -> int:
        """T' for a clip of `frames`; raises `FramesError` when the recipe's strides do not allow that many."""
        return min(lengths(self.graph, frames).values())


def _pretrained() -> Any:
    """huggingface_hub's mixin around a network: above everything else, hence by its name and not imported."""
    try:
        return import_module("i3dconvert.pretrained")
    except ImportError as error:
        raise CheckpointError(
            f"the hub's files are read and written by huggingface_hub ({error}): pip install huggingface_hub"
        ) from None


@dataclass(frozen=True)
class Plan:
    """A lifted network before any weights are read: all that writing a checkpoint needs."""

    reading: Reading
    lifted: Lifted

    @property
    def inflation(self) -> Inflation:
        """What is done to the 2D network."""
        return self.lifted.inflation

    def network(self, model: nn.Module) -> Network3d:
        """The 3D network of `model`, its inflated tensors on the meta device until `fill` brings them."""
        return _assemble(self, model)


def plan(model: nn.Module, recipe: Recipe, style: Style, shape: tuple[int, int, int]) -> Plan:
    """Trace `model` on an image `(C, H, W)` and lift it; raises `RecipeError`, `LiftError`."""
    reading = read(model, is_layer, shape)
    return Plan(reading, lift(reading, recipe, style.checked(), _ties(model)))


def fill(network: Network3d, state: Iterable[tuple[str, Tensor]]) -> Network3d:
    """Give `network` its tensors (not copied). Every key must be there, in the right shape.

    What is one parameter under several names in the 2D network is one here too, where its layers became 3D alike.
    """
    network.load_state_dict(dict(state), strict=True, assign=True)
    for first, *others in network.inflation.ties:
        parameter = network.get_parameter(first)
        for name in others:
            if network.get_parameter(name).shape == parameter.shape:
                owner, _, last = name.rpartition(".")
                setattr(network.get_submodule(owner), last, parameter)
    return network


def _ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _assemble(plan: Plan, model: nn.Module) -> Network3d:
    lifted, inflation, skeleton = plan.lifted, plan.inflation, plan.reading.root
    objects: dict[str, Any] = dict(lifted.modules)
    graph = copy.deepcopy(lifted.graph)

    def tensor(name: str) -> Any:
        owner, _, last = name.rpartition(".")
        if owner in lifted.modules:
            return getattr(lifted.modules[owner], last)
        found = operator.attrgetter(name)(skeleton)
        return nn.Parameter(found.new_empty(inflation.shape(name, found))) if name in inflation.fillings else found

    for node in graph.nodes:
        if node.op == "get_attr":
            objects[str(node.target)] = tensor(str(node.target))
    reached = {*objects, *(f"{name}.{key}" for name, module in lifted.modules.items() for key in module.state_dict())}
    with graph.inserting_before(next(iter(graph.nodes))):
        for key in model.state_dict():
            # Tensors that the forward pass never reaches stay in the network, under their names.
            if key not in reached and not key.endswith("_extra_state"):
                graph.get_attr(key)
                objects[key] = tensor(key)
    network = Network3d(objects, graph, class_name=type(model).__name__)
    _bring_buffers(network, model)
    _keep_out_of_state(network, set(model.state_dict()))
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters[name].requires_grad_(parameter.requires_grad)
    modules = dict(model.named_modules())
    network.train(model.training)
    for name, module in network.named_modules():
        if name in modules:
            module.training = modules[name].training
    network.meta["i3dconvert"] = inflation
    return network


def _bring_buffers(network: nn.Module, model: nn.Module) -> None:
    """Copy the model's buffers; those outside the state dict come from nowhere else."""
    for module_name, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                original = operator.attrgetter(f"{module_name}.{name}".lstrip("."))(model)
                module._buffers[name] = original.detach().clone()


def _keep_out_of_state(network: nn.Module, keys: set[str]) -> None:
    """Constants and non-persistent buffers are no part of the 2D state dict, nor of the 3D one."""
    for module_name, module in network.named_modules():
        for name in module._buffers:
            if f"{module_name}.{name}".lstrip(".") not in keys:
                module._non_persistent_buffers_set.add(name)


def cloned(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of `state`, apart from the originals; floating-point ones in `dtype` where one is given."""
    return {
        key: tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in state.items()
    }


def cast(network: Network3d, dtype: torch.dtype) -> Network3d:
    """A copy of `network` with its floating-point tensors in `dtype`."""
    copied: Network3d = copy.deepcopy(network).to(dtype)
    return copied
