"""Plan the 3D network of a 2D network, build its modules and fill its tensors."""

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
from torch import Tensor, fx, nn

from i3dconvert.comparison.forward import given
from i3dconvert.errors import I3DWarning, LiftError, listed
from i3dconvert.lift import trainers
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.exchange import marks
from i3dconvert.lift.graph import Lifted, lift
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.network import ForImages3d, Network3d, Sequential3d, inflation_of
from i3dconvert.lift.reading import Reading, on_meta, read
from i3dconvert.lift.reading.records import forward_of
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.seals import sealed
from i3dconvert.lift.tree.blocks import Block, Chain, OfList, OfSequential
from i3dconvert.lift.tree.calling import hold, named
from i3dconvert.lift.tree.cutting import Cut, cut
from i3dconvert.recipes import Recipe


@dataclass(frozen=True)
class Plan:
    """A lifted network without weights, which is enough to write a checkpoint."""

    reading: Reading
    lifted: Lifted

    @property
    def inflation(self) -> Inflation:
        """The record of the inflation."""
        return self.lifted.inflation

    @cached_property
    def cut(self) -> Cut:
        """The code of each module, cut from the lifted graph."""
        return cut(self.lifted.graph, self.lifted.calls, self.reading.root, self.lifted.modules)

    def network(self, model: nn.Module) -> Network3d:
        """Return the 3D network of `model`; inflated tensors are on the meta device until `fill`."""
        network = Growing(self, model).network()
        network._i3d_carried = trainers.carried(model)
        network._i3d_parts = trainers.parts(model, self.cut.codes[""], self.inflation.input)
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


def plan(
    model: nn.Module,
    recipe: Recipe,
    style: Style,
    shape: tuple[int, int, int],
    trial: bool = False,
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Read `model` on an image `(C, H, W)` and lift it; raises `RecipeError`, `LiftError`.

    `trial`: see `read`; for users' own networks, since `make sweep` tries the libraries'. `constants` are
    arguments of the network besides the image, by name.
    """
    _check_constants(model, constants)
    with given(model, constants):
        reading = read(model, is_layer, shape, trial)
    lifted = lift(reading, recipe, style.checked(), _ties(model))
    return Plan(reading, replace(lifted, inflation=replace(lifted.inflation, constants=dict(constants))))


def _check_constants(model: nn.Module, constants: Mapping[str, Any]) -> None:
    """Raise `LiftError` if a constant can't be in a file, or the network needs more than an image and these."""
    for name, value in constants.items():
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise LiftError(f"constants[{name!r}] is a {type(value).__name__}, and not a number, a string or None")
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in constants]:
        example = ", ".join(f"{name!r}: …" for name in missing)
        raise LiftError(
            f"{type(model).__name__} takes {', '.join(missing)} besides the image: give constant values, "
            f"inflate(model, constants={{{example}}}), or wrap it in a module that takes an image alone"
        )


def warn_of(inflation: Inflation, strict: bool = False) -> None:
    """Warn if no convolution became 3D, or if training differs.

    With `strict`, raises `LiftError` if any convolution stays 2D.
    """
    found = inflation.convolutions
    if strict and found.kept:
        raise LiftError("; ".join(found.lines()))
    if found.run and not found.lifted:
        warnings.warn("; ".join(found.lines()), I3DWarning, stacklevel=3)
    if inflation.eval_only:
        warnings.warn(
            f"the 2D network behaves differently in training ({inflation.eval_only}): the 3D one always behaves as it "
            "does in eval mode",
            I3DWarning,
            stacklevel=3,
        )


def warn_of_modes(model: nn.Module) -> None:
    """Warn if a `train` method of the 2D network leaves modules in eval mode, such as frozen BatchNorms."""
    if all(type(module).train is nn.Module.train for module in model.modules()):
        return
    kept = [name for name, module in on_meta(model).train().named_modules() if not module.training]
    if kept:
        warnings.warn(
            f"train() of the 2D network leaves {listed(kept)} in eval mode, train() of the 3D one does not: call "
            "eval() of these modules after it",
            I3DWarning,
            stacklevel=4,
        )


def warn_of_gradients(functions: tuple[str, ...]) -> None:
    """Warn of the 2D network's own autograd functions, whose backward the 3D network does not have."""
    if functions:
        warnings.warn(
            f"{', '.join(functions)} (torch.autograd.Function): the 3D network does not call their backward; its "
            "gradients are those of the operations in their forward (for a straight-through estimator, write "
            "x + (f(x) - x).detach() instead)",
            I3DWarning,
            stacklevel=4,
        )


def fill(network: Network3d, state: Iterable[tuple[str, Tensor]]) -> Network3d:
    """Give `network` its tensors (not copied). All keys are needed, in the right shapes.

    A parameter that is shared in the 2D network is shared here, too, if its layers are inflated alike.
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


_BY_CLASS: tuple[Any, ...] = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Classes that trainers look for (weight decay, LoRA): a subclass with its own code stays a subclass."""

_CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: OfSequential,
    nn.ModuleList: OfList,
    nn.ModuleDict: nn.ModuleDict,
}
"""The same for containers, whose modules have indices or keys."""


class Growing:
    """Builds the tree of modules in the order of the 2D network."""

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        self.cut, self.lifted, self.root, self.model = plan.cut, plan.lifted, plan.reading.root, model
        self.kept = set(model.state_dict())
        self.names = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self.buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self.fused = (called_in(plan.reading.graph) & self.names) - called_in(plan.lifted.graph)
        self.made: dict[int, nn.Module] = {}

    def network(self) -> Network3d:
        """Return the whole network."""
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
            if last in parent._modules:
                continue
            if not any(True for _ in (*layer.parameters(), *layer.buffers())):
                hold(parent, last, layer)
            else:
                parent.add_module(last, layer)  # new layers with tensors follow the 2D network's
        for block in network.modules():
            if isinstance(block, Block):
                block._i3d_list()
        for name in self.fused:
            owner, _, last = name.rpartition(".")
            if isinstance(holder := network.get_submodule(owner), Block):
                holder._i3d_fuse(last)
        self.bring_buffers(network)
        return network

    def module(self, old: nn.Module, name: str) -> nn.Module:
        """Return the 3D form of the 2D module called `name`."""
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
            holds = [container for kind, container in _CONTAINERS.items() if isinstance(old, kind)]
            new = named(Block, cls, *layers, *holds)(self.cut.codes[name])
            new.__dict__.update((key, getattr(old, key)) for layer in layers for key in layer.__constants__)
        elif isinstance(old, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            new = nn.ModuleList() if isinstance(old, nn.ModuleList) else nn.ModuleDict()
            new = named(Chain, cls)() if isinstance(old, nn.Sequential) else new
        elif type(old).__module__.startswith("torch.nn.modules.") and not self.gains_time(name, old):
            return self.unreached(old, name)
        else:
            new = named(Block, cls)(None)
        self.fill(new, old, name)
        return new

    def unreached(self, old: nn.Module, name: str) -> nn.Module:
        """Return a layer that is not called; its attributes are fixed if the code around it reads them (dropout.p)."""
        owner, _, last = name.rpartition(".")
        read = read_by(self.root.get_submodule(owner))
        fixed = {key: value for key, value in plain_in(old).items() if key in read} if last in read else {}
        if not fixed or any(True for _ in (*old.parameters(), *old.buffers(), *old.children())):
            return old
        new = named(Block, type(old).__name__, type(old))(None)
        new.__dict__.update(plain_in(old))
        new._i3d_settled(fixed)
        return new

    def gains_time(self, name: str, old: nn.Module) -> bool:
        return any(f"{name}.{key}" in self.lifted.inflation.fillings for key, _ in old.named_parameters())

    def fill(self, new: nn.Module, old: nn.Module, name: str) -> None:
        """Give `new` the tensors and children of `old`, inflated ones in their new shapes."""
        for key, parameter in old._parameters.items():
            new.register_parameter(key, None if parameter is None else self.empty(parameter, f"{name}.{key}"))
        constants = self.cut.constants.get(name, ())
        for key in constants:
            new.register_buffer(key, getattr(self.root, key).detach().clone(), persistent=False)
        for key, buffer in old._buffers.items():
            if buffer is not None and (path := f"{name}.{key}".lstrip(".")) in self.buffers:
                new.register_buffer(key, buffer, persistent=path in self.kept)
        for key, child in old._modules.items():
            if child is not None and (path := f"{name}.{key}".lstrip(".")) in self.names:
                new.add_module(key, self.module(child, path))
        if isinstance(new, Block):
            new._i3d_settled(fixed_in(old))

    def empty(self, parameter: nn.Parameter, name: str) -> nn.Parameter:
        """Return an empty parameter in the 3D shape of `parameter`."""
        shape = self.lifted.inflation.shape(name.lstrip("."), parameter)
        return nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)

    def bring_buffers(self, network: nn.Module) -> None:
        """Give the network the model's buffers, kernels in 3D; some of them are not in the state dict."""
        for module_name, module in network.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    key = f"{module_name}.{name}".lstrip(".")
                    original = operator.attrgetter(key)(self.model).detach().clone()
                    module.register_buffer(name, self.lifted.inflation.tensor(key, original), key in self.kept)


def called_in(graph: fx.Graph) -> set[str]:
    """Return the names of the modules that a graph calls."""
    return {str(node.target) for node in graph.nodes if node.op == "call_module"}


def fixed_in(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes that a 2D module's forward pass reads, which its code has as constants."""
    names = read_by(module)
    return {name: value for name, value in plain_in(module).items() if name in names}


def plain_in(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are numbers, strings or tuples."""
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN) and name != "training"}


_PLAIN = (bool, int, float, str, tuple)


def read_by(module: nn.Module) -> frozenset[str]:
    """Return the names in the code of a module's forward pass, and of its own methods that it calls."""
    cls, names, todo = type(module), set[str](), [forward_of(module)]
    while todo:
        code = getattr(inspect.unwrap(todo.pop()), "__code__", None)
        new = set(code.co_names if code else ()) - names
        names |= new
        todo += [method for name in new if inspect.isfunction(method := getattr(cls, name, None))]
    return frozenset(names)


def cloned(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return copies of the tensors of `state`, floating-point ones in `dtype` if it is given."""
    return {
        key: tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in state.items()
    }
