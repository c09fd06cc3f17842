"""The lifted network as a module, and its filling with inflated weights."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from i3dconvert.errors import RecipeError
from i3dconvert.kernels import INITS, PADDINGS
from i3dconvert.lift.graph import Layer, Lifted, lengths, lift
from i3dconvert.lift.layers import is_layer
from i3dconvert.lift.trace import Traced, trace
from i3dconvert.recipes import Recipe


@dataclass(frozen=True)
class Inflation:
    """What was done to a 2D network: everything that its 3D form and its tensors follow from."""

    recipe: Recipe
    init: str
    padding: str
    layers: tuple[Layer, ...] = ()
    inflated: Mapping[str, int] = field(default_factory=dict)
    """State-dict key → temporal taps, for each tensor that gains an axis."""
    minimum_frames: int = 1
    input: tuple[int, int, int] = (3, 224, 224)
    """The image `(C, H, W)` that the 2D network was traced at."""
    any_size: bool = False
    """Whether every value is an image or a vector, as in convolutional networks, so that any size goes through."""
    folds: int = 0
    """How many times the network turns a clip into frames."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Backbone, weights, preprocessing: what a checkpoint says of its origin (empty for a user's own module)."""

    def state(self, state2d: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The 3D tensors of the 2D `state2d`, one at a time, under the same keys."""
        for key, tensor in state2d.items():
            yield key, self.tensor(key, tensor)

    def tensor(self, key: str, tensor2d: Tensor) -> Tensor:
        """The 3D form of one 2D tensor: `(O, I, kH, kW)` → `(O, I, T, kH, kW)` where inflated, else as it is."""
        taps = self.inflated.get(key)
        return tensor2d if taps is None else INITS[self.init].inflate(tensor2d, taps)


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

    def frames_left(self, frames: int) -> int:
        """T' for a clip of `frames`; raises `FramesError` when the recipe's strides do not allow that many."""
        count = lengths(self.graph, frames)
        return min(count.values())


@dataclass(frozen=True)
class Plan:
    """A lifted network before any weights are read: all that writing a checkpoint needs."""

    inflation: Inflation
    traced: Traced
    lifted: Lifted

    def network(self, model: nn.Module) -> Network3d:
        """The 3D network of `model`, its inflated tensors on the meta device until `fill` brings them."""
        return _assemble(self, model)


def plan(model: nn.Module, recipe: Recipe, init: str, padding: str | None, shape: tuple[int, int, int]) -> Plan:
    """Trace `model` on an image `(C, H, W)` and lift it.

    `init` is `center` or `mean`; `padding` (`zeros` or `replicate`, temporal) defaults to what keeps the init equal.
    Raises `RecipeError` and `LiftError` as `lift` and `trace` do.
    """
    if init not in INITS:
        raise RecipeError(f"no init {init!r}; known: {', '.join(INITS)}")
    padding = padding or INITS[init].padding
    if padding not in PADDINGS:
        raise RecipeError(f"no temporal padding {padding!r}; known: {', '.join(PADDINGS)}")
    traced = trace(model, is_layer, shape)
    lifted = lift(traced, recipe, padding)
    inflation = Inflation(
        recipe,
        init,
        padding,
        tuple(lifted.layers),
        lifted.inflated,
        lifted.minimum_frames,
        shape,
        lifted.any_size,
        lifted.folded,
    )
    return Plan(inflation, traced, lifted)


def fill(network: Network3d, state: Iterable[tuple[str, Tensor]]) -> Network3d:
    """Give `network` its tensors (not copied). Every key must be there, in the right shape."""
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network


def _assemble(plan: Plan, model: nn.Module) -> Network3d:
    lifted, skeleton = plan.lifted, plan.traced.root
    objects: dict[str, Any] = dict(lifted.modules)
    graph = copy.deepcopy(lifted.graph)
    reached = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            objects[str(node.target)] = operator.attrgetter(str(node.target))(skeleton)
            reached.add(str(node.target))
    for name, module in lifted.modules.items():
        reached |= {f"{name}.{key}" for key in module.state_dict()}
    with graph.inserting_before(next(iter(graph.nodes))):
        for key in model.state_dict():
            # Tensors that the forward pass never reaches stay in the network, under their names.
            if key not in reached and not key.endswith("_extra_state"):
                graph.get_attr(key)
                objects[key] = operator.attrgetter(key)(skeleton)
    network = Network3d(objects, graph, class_name=type(model).__name__)
    _bring_buffers(network, model)
    _keep_out_of_state(network, set(model.state_dict()))
    parameters = dict(network.named_parameters())
    for name, parameter in model.named_parameters():
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
