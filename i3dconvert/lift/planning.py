"""From a 2D network to its 3D one: what it will be, its modules, its tensors."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.comparison.forward import given
from i3dconvert.errors import I3DWarning, LiftError
from i3dconvert.lift import trainers
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.exchange import marks
from i3dconvert.lift.graph import Lifted, lift
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import ForImages3d, Network3d, Sequential3d, inflation_of
from i3dconvert.lift.reading import Reading, read
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.seals import sealed
from i3dconvert.lift.tree.blocks import Block, Chain
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.cutting import Cut, cut
from i3dconvert.recipes import Recipe


@dataclass(frozen=True)
class Plan:
    """A lifted network before any weights are read: all that writing a checkpoint needs."""

    reading: Reading
    lifted: Lifted

    @property
    def inflation(self) -> Inflation:
        """What is done to the 2D network."""
        return self.lifted.inflation

    @cached_property
    def cut(self) -> Cut:
        """The lifted graph, cut into the code of each module."""
        return cut(self.lifted.graph, self.lifted.calls, self.reading.root, self.lifted.modules)

    def network(self, model: nn.Module) -> Network3d:
        """The 3D network of `model`, its inflated tensors on the meta device until `fill` brings them."""
        return _assemble(self, model)


def plan(
    model: nn.Module,
    recipe: Recipe,
    style: Style,
    shape: tuple[int, int, int],
    trial: bool = False,
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Read `model` on an image `(C, H, W)` and lift it; raises `RecipeError`, `LiftError`.

    `trial`: see `read`; for users' own networks; `make sweep` tries the libraries'. `constants` are
    what the network is called with beside the image, by name.
    """
    _check_constants(model, constants)
    with given(model, constants):
        reading = read(model, is_layer, shape, trial)
    lifted = lift(reading, recipe, style.checked(), _ties(model))
    return Plan(reading, replace(lifted, inflation=replace(lifted.inflation, constants=dict(constants))))


def _check_constants(model: nn.Module, constants: Mapping[str, Any]) -> None:
    """Raise `LiftError` for what can't be in a file, and where the network needs more than an image and these."""
    for name, value in constants.items():
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise LiftError(f"constants[{name!r}] is a {type(value).__name__}, and not a number, a string or None")
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in constants]:
        example = ", ".join(f"{name!r}: …" for name in missing)
        raise LiftError(
            f"{type(model).__name__} takes {', '.join(missing)} beside the image: give constant values, "
            f"inflate(model, constants={{{example}}}), or wrap it in a module that takes an image alone"
        )


def warn_of(inflation: Inflation, strict: bool = False) -> None:
    """Warn where no convolution became 3D, and of what training does otherwise.

    With `strict`, raises `LiftError` where any convolution stays 2D.
    """
    found = inflation.convolutions
    if strict and found.kept:
        raise LiftError("; ".join(found.lines()))
    if found.run and not found.lifted:
        warnings.warn("; ".join(found.lines()), I3DWarning, stacklevel=3)
    if inflation.eval_only:
        warnings.warn(
            f"in training the 2D network does something else ({inflation.eval_only}): the 3D one does in both modes "
            "what it does in eval mode",
            I3DWarning,
            stacklevel=3,
        )


def fill(network: Network3d, state: Iterable[tuple[str, Tensor]]) -> Network3d:
    """Give `network` its tensors (not copied). Every key must be there, in the right shape.

    What is one parameter under several names in the 2D network is one here too, where its layers became 3D alike.
    """
    network.load_state_dict(dict(state), strict=True, assign=True)
    network._i3d_seals = sealed(network.state_dict())
    fillings = inflation_of(network).fillings
    for first, *others in inflation_of(network).ties:
        parameter = network.get_parameter(first)
        for name in others:
            alike = fillings.get(name) == fillings.get(first)
            if alike and network.get_parameter(name).shape == parameter.shape:
                owner, _, last = name.rpartition(".")
                setattr(network.get_submodule(owner), last, parameter)
    return network


def _ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _assemble(plan: Plan, model: nn.Module) -> Network3d:
    network = Growing(plan.cut, plan.lifted, plan.reading.root, model).network()
    network._i3d_carried = trainers.carried(model)
    network._i3d_parts = trainers.parts(model, plan.cut.codes[""], plan.lifted.inflation.input)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters[name].requires_grad_(parameter.requires_grad)
    modules = dict(model.named_modules())
    network.train(model.training)
    for name, module in network.named_modules():
        if name in modules:
            module.training = modules[name].training
    network._i3d_marks = marks(network)
    return network


_BY_CLASS: tuple[Any, ...] = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""What trainers ask for by class (weight decay, LoRA): a subclass with code of its own stays one."""


class Growing:
    """Makes the modules of the tree, in the order that the 2D network has them."""

    def __init__(self, cut: Cut, lifted: Lifted, root: nn.Module, model: nn.Module) -> None:
        self.cut, self.lifted, self.root, self.model = cut, lifted, root, model
        self.kept = set(model.state_dict())
        self.made: dict[int, nn.Module] = {}

    def network(self) -> Network3d:
        """The whole."""
        cls = type(self.model)
        sequential = isinstance(self.model, nn.Sequential) and cls.forward is nn.Sequential.forward
        for_images = "pixel_values" in inspect.signature(cls.forward).parameters
        new = Sequential3d if sequential else ForImages3d if for_images else Network3d
        network = named(new, cls.__name__)(self.cut.codes[""], self.lifted.inflation)
        if isinstance(network, ForImages3d):
            network._i3d_problem = getattr(getattr(self.model, "config", None), "problem_type", None)
        self.fill(network, self.root, "")
        for name, layer in self.lifted.modules.items():
            owner, _, last = name.rpartition(".")
            parent = network.get_submodule(owner)
            if last not in parent._modules:
                parent.add_module(last, layer)  # what is new, behind what the 2D network has
        self.bring_buffers(network)
        return network

    def module(self, old: nn.Module, name: str) -> nn.Module:
        """What the 2D module called `name` has become."""
        if id(old) not in self.made:
            self.made[id(old)] = self.lifted.modules[name] if name in self.lifted.modules else self.new(old, name)
        return self.made[id(old)]

    def new(self, old: nn.Module, name: str) -> nn.Module:
        cls, layers = type(old).__name__, [layer for layer in _BY_CLASS if isinstance(old, layer)]
        new: nn.Module
        if (chain := self.cut.chains.get(name)) is not None:
            new = named(Chain, cls)()
            new._i3d_takes, new._i3d_gives, new._i3d_facts = chain.takes, chain.gives, chain.facts
        elif name in self.cut.codes:
            new = named(Block, cls, *layers)(self.cut.codes[name])
            new.__dict__.update((key, getattr(old, key)) for layer in layers for key in layer.__constants__)
        elif isinstance(old, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            new = nn.ModuleList() if isinstance(old, nn.ModuleList) else nn.ModuleDict()
            new = named(Chain, cls)() if isinstance(old, nn.Sequential) else new
        elif type(old).__module__.startswith("torch.nn.modules.") and not self.gains_time(name, old):
            return old  # the forward pass does not reach it
        else:
            new = named(Block, cls)(None)
        self.fill(new, old, name)
        return new

    def gains_time(self, name: str, old: nn.Module) -> bool:
        return any(f"{name}.{key}" in self.lifted.inflation.fillings for key, _ in old.named_parameters())

    def fill(self, new: nn.Module, old: nn.Module, name: str) -> None:
        """Give `new` the tensors and children that `old` has, those over clips in their new shapes."""
        for key, parameter in old._parameters.items():
            new.register_parameter(key, None if parameter is None else self.empty(parameter, f"{name}.{key}"))
        constants = self.cut.constants.get(name, ())
        for key in constants:
            new.register_buffer(key, getattr(self.root, key).detach().clone(), persistent=False)
        for key, buffer in old._buffers.items():
            if buffer is not None and not (key in self.root._buffers and key.startswith("_tensor_constant")):
                new.register_buffer(key, buffer, persistent=f"{name}.{key}".lstrip(".") in self.kept)
        for key, child in old._modules.items():
            if child is not None:
                new.add_module(key, self.module(child, f"{name}.{key}".lstrip(".")))
        if isinstance(new, Block):
            new._i3d_ready = True

    def empty(self, parameter: nn.Parameter, name: str) -> nn.Parameter:
        """One in the shape that `parameter` has over clips."""
        shape = self.lifted.inflation.shape(name.lstrip("."), parameter)
        return nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)

    def bring_buffers(self, network: nn.Module) -> None:
        """Give the network the model's buffers, kernels in 3D; those outside the state dict come from nowhere else."""
        for module_name, module in network.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    key = f"{module_name}.{name}".lstrip(".")
                    original = operator.attrgetter(key)(self.model).detach().clone()
                    module.register_buffer(name, self.lifted.inflation.tensor(key, original), key in self.kept)


def cloned(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of `state`, apart from the originals; floating-point ones in `dtype` where one is given."""
    return {
        key: tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in state.items()
    }
