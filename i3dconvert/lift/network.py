"""The lifted network as a module, and its filling with inflated weights."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.errors import CheckpointError, RecipeError
from i3dconvert.fillings import Filling
from i3dconvert.kernels import FORMS, INITS, PADDINGS, TEMPORAL_POOLS, TIME_EMBEDDINGS, Style
from i3dconvert.lift.graph import Layer, Lifted, lift
from i3dconvert.lift.layers import is_layer
from i3dconvert.lift.lengths import lengths
from i3dconvert.lift.trace import Traced, trace
from i3dconvert.recipes import Recipe

PIECE = 2**23


@dataclass(frozen=True)
class Inflation:
    """What was done to a 2D network: everything that its 3D form and its tensors follow from."""

    recipe: Recipe
    style: Style
    layers: tuple[Layer, ...] = ()
    fillings: Mapping[str, Filling] = field(default_factory=dict)
    """By state-dict key, for each tensor that gains a temporal axis or has no 2D form."""
    minimum_frames: int = 1
    input: tuple[int, int, int] = (3, 224, 224)
    """The image `(C, H, W)` that the 2D network was traced at."""
    any_size: bool = False
    """Whether every value is an image or a vector, as in convolutional networks, so that any size goes through."""
    folds: int = 0
    """How many times the network turns a clip into frames."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Keys of one and the same parameter, group by group."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Backbone, weights, preprocessing: what a checkpoint says of its origin (empty for a user's own module)."""

    def keys(self, state2d: Iterable[str]) -> list[str]:
        """The 3D network's keys for the 2D network's: the same, and those of temporal convolutions of their own."""
        return [*state2d, *(key for key, filling in self.fillings.items() if filling.is_new)]

    def source(self, key: str, state2d: Mapping[str, Tensor]) -> Tensor:
        """The 2D tensor that the 3D one called `key` is made from, or takes its dtype from."""
        if key in state2d:
            return state2d[key]
        parts = [state2d[name] for name in self.fillings[key].like]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def tensor(self, key: str, tensor2d: Tensor) -> Tensor:
        """The 3D form of one 2D tensor: `(O, I, kH, kW)` → `(O, I, T, kH, kW)` where inflated, else as it is."""
        filling = self.fillings.get(key)
        return tensor2d if filling is None else filling(tensor2d, self.style.init)

    def pieces(self, key: str, tensor2d: Tensor) -> Iterator[Tensor]:
        """`tensor(key, tensor2d)` in parts along its first axis, of `PIECE` bytes or so, for want of memory."""
        filling = self.fillings.get(key)
        if filling is None or not filling.is_kernel:
            yield self.tensor(key, tensor2d)
        else:
            rows = max(PIECE // (tensor2d[0].nbytes * filling.times), 1)
            yield from (filling(part, self.style.init) for part in torch.split(tensor2d, rows))

    def state(self, state2d: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The 3D tensors of the 2D `state2d`, one at a time."""
        for key in self.keys(state2d):
            yield key, self.tensor(key, self.source(key, state2d))

    def shape(self, key: str, tensor2d: Tensor) -> tuple[int, ...]:
        """Of `tensor(key, tensor2d)`, without making it."""
        filling = self.fillings.get(key)
        return tuple(tensor2d.shape) if filling is None else filling.shape(tuple(tensor2d.shape))


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

    def frames_left(self, frames: int) -> int:
        """T' for a clip of `frames`; raises `FramesError` when the recipe's strides do not allow that many."""
        count = lengths(self.graph, frames)
        return min(count.values())


def _pretrained() -> Any:
    """huggingface_hub's mixin around a network; huggingface_hub is not needed for anything else."""
    try:
        from i3dconvert import pretrained
    except ImportError as error:
        raise CheckpointError(
            f"the hub's files are read and written by huggingface_hub ({error}): pip install huggingface_hub"
        ) from None
    return pretrained


@dataclass(frozen=True)
class Plan:
    """A lifted network before any weights are read: all that writing a checkpoint needs."""

    inflation: Inflation
    traced: Traced
    lifted: Lifted

    def network(self, model: nn.Module) -> Network3d:
        """The 3D network of `model`, its inflated tensors on the meta device until `fill` brings them."""
        return _assemble(self, model)


def style(
    init: str = "center",
    padding: str | None = None,
    conv: str = "3d",
    temporal_pool: str = "mean",
    time_embedding: str = "none",
) -> Style:
    """A style by its names; `padding` defaults to what keeps the init equal. Raises `RecipeError` for unknown ones."""
    for what, name, known in (
        ("init", init, INITS),
        ("form of convolution", conv, FORMS),
        ("temporal pool", temporal_pool, TEMPORAL_POOLS),
        ("time embedding", time_embedding, TIME_EMBEDDINGS),
    ):
        if name not in known:
            raise RecipeError(f"no {what} {name!r}; known: {', '.join(known)}")
    padding = padding or INITS[init].padding
    if padding not in PADDINGS:
        raise RecipeError(f"no temporal padding {padding!r}; known: {', '.join(PADDINGS)}")
    return Style(init, padding, conv, temporal_pool, time_embedding)


def plan(model: nn.Module, recipe: Recipe, style: Style, shape: tuple[int, int, int]) -> Plan:
    """Trace `model` on an image `(C, H, W)` and lift it; raises `RecipeError`, `LiftError`."""
    traced, ties = trace(model, is_layer, shape), _ties(model)
    lifted = lift(traced, recipe, style, ties)
    inflation = Inflation(
        recipe=recipe,
        style=style,
        layers=tuple(lifted.layers),
        fillings=lifted.fillings,
        minimum_frames=lifted.minimum_frames,
        input=shape,
        any_size=lifted.any_size,
        folds=lifted.folded,
        ties=ties,
    )
    return Plan(inflation, traced, lifted)


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
    lifted, skeleton = plan.lifted, plan.traced.root
    objects: dict[str, Any] = dict(lifted.modules)
    graph = copy.deepcopy(lifted.graph)

    def tensor(name: str) -> Any:
        owner, _, last = name.rpartition(".")
        if owner in lifted.modules:
            return getattr(lifted.modules[owner], last)
        found = operator.attrgetter(name)(skeleton)
        return nn.Parameter(found.new_empty(plan.inflation.shape(name, found))) if name in lifted.fillings else found

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
    network.meta["i3dconvert"] = plan.inflation
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
