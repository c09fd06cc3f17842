"""The lifted network as a module, and its filling with inflated weights."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from i3dconvert.comparison.forward import given
from i3dconvert.errors import CheckpointError, I3DWarning, LiftError
from i3dconvert.lift import layout, trainers
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.exchange import marks
from i3dconvert.lift.graph import Lifted, lift
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.lengths import checked
from i3dconvert.lift.reading import Reading, read
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.seals import Seal, sealed
from i3dconvert.lift.tree.blocks import Block, Chain
from i3dconvert.lift.tree.calling import named
from i3dconvert.lift.tree.code import Code
from i3dconvert.lift.tree.cutting import Cut, cut
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.lift.tree.straight import Straight, straightened
from i3dconvert.recipes import Recipe
from i3dconvert.video.labels import Given
from i3dconvert.video.preprocessing import Preprocessing

HUB: dict[str, Callable[..., Any]] = {}
"""What reads and writes the hub's files, which the package puts here: it stands above all of this."""


class Network3d(Block):
    """An inflated network: an ordinary module on clips `(N, C, T, H, W)` under the 2D network's own key names.

    A child of the 2D network's goes before an attribute of the same name; `inflation_of(network)` and the like give
    what is asked for in any case.
    """

    if TYPE_CHECKING:
        inflation: Inflation
        """What this network was made by."""
        meta: dict[str, Any]
        """What is known of it beside: `origin`, where the 2D network came from."""
        gives_scores: bool
        """Whether it gives a row of scores (or features) for a clip, and no maps."""
        graph: fx.Graph
        """The flat graph of its layers and operations as they are now."""
        frames_left: Callable[[int], int]
        """T' for a clip of so many frames; raises `FramesError` when the recipe's strides do not allow that many."""
        preprocessing: Preprocessing
        """Makes a clip `(3, T, H, W)` in float32 of frames in uint8 `(T, H, W, 3)`."""
        head_name: str
        """The name of the linear layer that gives the scores."""
        reset_head: Callable[[int], None]
        """Replaces the head by a new linear layer for so many classes."""
        set_grad_checkpointing: Callable[..., None]
        """Computes each block again in the backward pass."""

    promised: ClassVar[dict[str, Callable[[Any], Any]]] = {
        **Block.promised,
        "inflation": lambda network: inflation_of(network),
        "meta": lambda network: network.__dict__["_i3d_meta"],
        "gives_scores": lambda network: gives_scores(network),
        "graph": lambda network: graph_of(network),
        "preprocessing": lambda network: preprocessing_of(network),
        "frames_left": lambda network: partial(frames_left, network),
        "head_name": lambda network: trainers.head_name(network),
        "reset_head": lambda network: partial(trainers.reset_head, network),
        "set_grad_checkpointing": lambda network: partial(trainers.set_grad_checkpointing, network),
    }

    def __init__(self, code: Code, inflation: Inflation) -> None:
        super().__init__(code)
        self._i3d_inflation = inflation
        self._i3d_meta: dict[str, Any] = {"origin": None}
        self._i3d_marks: dict[str, str] = {}
        self._i3d_seals: dict[str, Seal] = {}
        self._i3d_carried: dict[str, Any] = {}
        self._i3d_warned = False
        self._i3d_parts: dict[str, Code] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            carried = self.__dict__.get("_i3d_carried", {})
            if name in carried:
                return carried[name]
            if (part := self.__dict__.get("_i3d_parts", {}).get(name)) is not None:
                return partial(trainers.run_part, self, part)
            if name in _OF_TIMM and carried:
                return _OF_TIMM[name](self)
            raise

    def forward(self, clip: Tensor) -> Any:
        """Scores or maps of clips `(N, C, T, H, W)`."""
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._warn_of_size(clip)
            try:
                return super().forward(clip)
            except RuntimeError:
                frames_left(self, clip.shape[2])  # where branches are out of step
                raise
        return super().forward(clip)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Network3d:
        """`i3dconvert.from_pretrained`: the network in a folder, or in a repository on the Hugging Face hub."""
        network: Network3d = _of_the_hub("from_pretrained")(name, **options)
        return network

    def save_pretrained(self, folder: str | Path, finetuned: bool = False, classes: Given = None) -> None:
        """`i3dconvert.save_pretrained`: write weights, configuration, preprocessing and a card into `folder`."""
        _of_the_hub("save_pretrained")(self, folder, finetuned, classes)

    def push_to_hub(self, name: str, finetuned: bool = False, classes: Given = None, **options: Any) -> str:
        """`i3dconvert.push_to_hub`: upload what `save_pretrained` writes; returns the repository's address."""
        address: str = _of_the_hub("push_to_hub")(self, name, finetuned, classes, **options)
        return address

    def _warn_of_size(self, clip: Any) -> None:
        """Warn, once, of heights and widths beyond those that were tried."""
        tried = self._i3d_inflation.tried
        if tried is None or self._i3d_warned or isinstance(clip, fx.Proxy) or clip.dim() != 5:
            return
        if any(not low <= size <= high for (low, high), size in zip(tried, clip.shape[3:], strict=True)):
            self._i3d_warned = True
            height, width = clip.shape[3:]
            text = f"the clip is {height}×{width}; {self._i3d_inflation.sizes()}: compare it with the 2D network there"
            warnings.warn(text, I3DWarning, stacklevel=4)


def _of_the_hub(name: str) -> Callable[..., Any]:
    if name not in HUB:
        raise CheckpointError(f"nothing here reads or writes the hub's files yet: call i3dconvert.{name}")
    return HUB[name]


_OF_TIMM: dict[str, Callable[[Any], Any]] = {
    "num_classes": lambda network: getattr(network.get_submodule(trainers.head_name(network)), "out_features", 0),
    "get_classifier": lambda network: lambda: network.get_submodule(trainers.head_name(network)),
    "reset_classifier": lambda network: partial(trainers.reset_classifier, network),
}
"""What timm's networks answer, by the head that is there now."""


class ForImages3d(Network3d):
    """What a network of transformers has become: it is called as those are."""

    _i3d_problem: str | None = None
    """The `problem_type` of its configuration."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        """What the 2D network gives, over clips `(N, C, T, H, W)`; with `labels`, `loss` and `logits`."""
        output = super().forward(pixel_values)
        if labels is None:
            return output
        rest = output if isinstance(output, dict) else {"logits": output}
        return {"loss": trainers.loss(rest.get("logits"), labels, self._i3d_problem), **rest}


class Sequential3d(Network3d, nn.Sequential):
    """What an `nn.Sequential` has become: its layers have places, and others can be put in them."""

    def __getitem__(self, index: Any) -> Any:
        children = list(self._modules.items())
        if not isinstance(index, slice):
            return children[operator.index(index)][1]
        part = Chain(OrderedDict(children[index]))
        part._i3d_takes = "clip" if index.indices(len(children))[0] == 0 else None
        return part

    def __setitem__(self, index: Any, module: nn.Module) -> None:
        setattr(self, list(self._modules)[operator.index(index)], module)

    def _longer(self, *_: Any) -> Any:
        raise LiftError(
            "the network ends with what it does over time, so that it can't be made longer or shorter: inflate the "
            "longer Sequential, or put the network into one: nn.Sequential(network, layer)"
        )

    append = extend = insert = pop = __delitem__ = __iadd__ = _longer  # type: ignore[assignment]


def inflation_of(network: nn.Module) -> Inflation:
    """What a network was made by."""
    inflation: Inflation = network.__dict__["_i3d_inflation"]
    return inflation


def origin_of(network: nn.Module) -> Any:
    """Where its 2D network came from; None for one in memory."""
    return network.__dict__["_i3d_meta"]["origin"]


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """What frames go through before a network: `preprocessing_of(network)(frames)`.

    It is called with frames in uint8 `(T, H, W, 3)` and gives a clip `(3, T, H, W)` in float32. Of a network in memory
    it is ImageNet's, which most are trained with.
    """
    origin, usual = origin_of(network), Preprocessing.of_images(inflation_of(network).input)
    found: Preprocessing = usual if origin is None else origin.preprocessing
    return found


def set_origin(network: Network3d, origin: Any) -> None:
    """Note where its 2D network came from."""
    network._i3d_meta["origin"] = origin


def gives_scores(network: Network3d) -> bool:
    """Whether it gives a row of scores (or features) for a clip, and no maps."""
    output = graph_of(network).output_node().args[0]
    return getattr(output, "target", None) in (layout.mean_over_time, layout.over_time)


def frames_left(network: Network3d, frames: int) -> int:
    """T' for a clip of `frames`; raises `FramesError` when the recipe's strides do not allow that many."""
    return min(checked(graph_of(network), frames).values())


def flattened(network: Network3d) -> Straight:
    """The network as it is now, as one flat module with the same layers."""
    return straightened(network, graph_of(network), type(network).__name__).train(network.training)


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


def cast(network: Network3d, dtype: torch.dtype) -> Network3d:
    """A copy of `network` with its floating-point tensors in `dtype`."""
    copied: Network3d = copy.deepcopy(network).to(dtype)
    return copied
