"""The classes of lifted networks, and functions on them."""

from __future__ import annotations

import copy
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import register_pytree_node

from i3dconvert.errors import AbsentError, CheckpointError, I3DWarning, LiftError
from i3dconvert.lift import layout, trainers
from i3dconvert.lift.lengths import checked
from i3dconvert.lift.record import Inflation
from i3dconvert.lift.seals import Seal
from i3dconvert.lift.tree.blocks import Block, Chain
from i3dconvert.lift.tree.code import Code
from i3dconvert.lift.tree.flat import graph_of, not_inflated
from i3dconvert.lift.tree.straight import Straight, straightened
from i3dconvert.video.labels import Given
from i3dconvert.video.preprocessing import Preprocessing

HUB: dict[str, Callable[..., Any]] = {}
"""Functions that read and write the hub's files; the package puts them here, as this module can't import them."""


class Network3d(Block):
    """An inflated network: an ordinary module on clips `(N, C, T, H, W)` under the 2D network's own key names.

    A child of the 2D network hides an attribute of the same name; `inflation_of(network)` and similar functions
    work in any case.
    """

    if TYPE_CHECKING:
        inflation: Inflation
        """The record of the inflation."""
        meta: dict[str, Any]
        """Other facts: `origin` says where the 2D network came from."""
        gives_scores: bool
        """Whether it returns a row of scores (or features) for a clip, and no maps."""
        graph: fx.Graph
        """The flat graph of its layers and operations as they are now."""
        frames_left: Callable[[int], int]
        """T' for a clip of that many frames; raises `FramesError` if the recipe's strides do not allow them."""
        preprocessing: Preprocessing
        """Converts frames in uint8 `(T, H, W, 3)` to a clip `(3, T, H, W)` in float32."""
        head_name: str
        """The name of the linear layer that computes the scores."""
        reset_head: Callable[[int], None]
        """Replaces the head by a new linear layer for that many classes."""
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
            if name in trainers.INSTEAD:
                raise AbsentError(f"{type(self).__name__} has no {name} in 3D: {trainers.INSTEAD[name]}") from None
            raise

    def forward(self, clip: Tensor) -> Any:
        """Return scores or maps of clips `(N, C, T, H, W)`."""
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._warn_of_size(clip)
            try:
                return super().forward(clip)
            except RuntimeError:
                frames_left(self, clip.shape[2])  # raises FramesError if branches differ in length
                raise
            except (AttributeError, IndexError, TypeError):
                graph_of(self)  # raises LiftError if a module is missing
                raise
        return super().forward(clip)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of this network; raises `CheckpointError` for one of the 2D network."""
        own, fillings = self.state_dict(), inflation_of(self).fillings
        flat = [getattr(state_dict.get(key), "ndim", None) == own[key].ndim - 1 for key in fillings if key in own]
        if strict and flat and all(flat):
            raise CheckpointError(
                "this is a state dict of the 2D network: give it to inflate(…, weights=), or load it into the 2D "
                "module and inflate that"
            )
        return super().load_state_dict(state_dict, strict, assign)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Network3d:
        """Return the network in a folder or a Hugging Face repository: `i3dconvert.from_pretrained`."""
        network: Network3d = _of_the_hub("from_pretrained")(name, **options)
        return network

    def save_pretrained(self, folder: str | Path, finetuned: bool = False, classes: Given = None) -> None:
        """Write weights, configuration, preprocessing and a card: `i3dconvert.save_pretrained`."""
        _of_the_hub("save_pretrained")(self, folder, finetuned, classes)

    def push_to_hub(self, name: str, finetuned: bool = False, classes: Given = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes; returns the address: `i3dconvert.push_to_hub`."""
        address: str = _of_the_hub("push_to_hub")(self, name, finetuned, classes, **options)
        return address

    def _warn_of_size(self, clip: Any) -> None:
        """Warn once if height or width is outside the range that was tried."""
        tried = self._i3d_inflation.tried
        if tried is None or self._i3d_warned or isinstance(clip, fx.Proxy) or clip.dim() != 5:
            return
        if any(not low <= size <= high for (low, high), size in zip(tried, clip.shape[3:], strict=True)):
            self._i3d_warned = True
            height, width = clip.shape[3:]
            text = f"the clip is {height}×{width}; {self._i3d_inflation.sizes()}: compare the networks at this size"
            warnings.warn(text, I3DWarning, stacklevel=4)


def _of_the_hub(name: str) -> Callable[..., Any]:
    if name not in HUB:
        raise CheckpointError(f"the hub's functions are not loaded: call i3dconvert.{name}")
    return HUB[name]


_OF_TIMM: dict[str, Callable[[Any], Any]] = {
    "num_classes": lambda network: trainers.num_classes(network),
    "get_classifier": lambda network: partial(trainers.get_classifier, network),
    "reset_classifier": lambda network: partial(trainers.reset_classifier, network),
}
"""Attributes of timm's networks, computed from the current head."""


class Outputs(OrderedDict[str, Any]):
    """Outputs by name, in the ways of transformers: `outputs["logits"]`, `outputs.logits`, `outputs[0]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the outputs are {', '.join(self)}, not {name}") from None

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)


register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
)


class ForImages3d(Network3d):
    """The 3D form of a transformers network, with the same call."""

    _i3d_problem: str | None = None
    """The `problem_type` of its configuration."""

    accepts_loss_kwargs: ClassVar[bool] = False
    """For the Trainer of transformers: the loss is a mean over the batch, whatever the steps of an accumulation."""

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """Return the 2D network's outputs for clips `(N, C, T, H, W)`; with `labels`, `loss` and `logits`.

        `options` are those of transformers. Raises `LiftError` for one that the network's code does not have.
        """
        output = super().forward(pixel_values)
        if options:
            self._i3d_check_options(options, output)
            if isinstance(output, dict):
                output = {key: value for key, value in output.items() if options.get(f"output_{key}") is not False}
        if labels is not None:
            rest = output if isinstance(output, dict) else {"logits": output}
            output = {"loss": trainers.loss(rest.get("logits"), labels, self._i3d_problem), **rest}
        plain = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if isinstance(output, dict) and options.get("return_dict") is False:
            return tuple(output.values())
        return Outputs(output) if isinstance(output, dict) and not plain else output

    def _i3d_check_options(self, options: Mapping[str, Any], output: Any) -> None:
        known = {"return_dict": True, **self._i3d_inflation.constants}
        for name, value in options.items():
            there = isinstance(output, dict) and name in {f"output_{key}" for key in output}
            if not (value is None or value is False or there or value is known.get(name)):
                constant = repr(value) if isinstance(value, bool | int | float | str) else "…"
                raise LiftError(
                    f"{name} is not part of the code of this {type(self).__name__}: inflate the 2D network with it, "
                    f"inflate(model, constants={{{name!r}: {constant}}})"
                )


class Sequential3d(Network3d, nn.Sequential):
    """The 3D form of an `nn.Sequential`: its layers have indices and can be replaced."""

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
            "layers can't be added to or removed from an inflated Sequential, which ends with operations over time: "
            "inflate the longer Sequential, or nest the network: nn.Sequential(network, layer)"
        )

    append = extend = insert = pop = __delitem__ = __iadd__ = _longer  # type: ignore[assignment]


def inflation_of(network: nn.Module) -> Inflation:
    """Return the record of a network's inflation; raises `LiftError` for a network that was not inflated."""
    inflation: Inflation | None = getattr(network, "__dict__", {}).get("_i3d_inflation")
    if inflation is None:
        raise LiftError(not_inflated(network))
    return inflation


def origin_of(network: nn.Module) -> Any:
    """Return where its 2D network came from; None if it was a module in memory."""
    return network.__dict__["_i3d_meta"]["origin"]


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """Return the preprocessing of a network's frames: `preprocessing_of(network)(frames)`.

    It converts frames in uint8 `(T, H, W, 3)` to a clip `(3, T, H, W)` in float32. For a network from a module in
    memory, it is ImageNet's.
    """
    origin, usual = origin_of(network), Preprocessing.of_images(inflation_of(network).input)
    found: Preprocessing = usual if origin is None else origin.preprocessing
    return found


def set_origin(network: Network3d, origin: Any) -> None:
    """Set the origin of the 2D network."""
    network._i3d_meta["origin"] = origin


def gives_scores(network: Network3d) -> bool:
    """Return whether a network returns a row of scores (or features) for a clip, alone or in a dict, and no maps."""
    found: list[fx.Node] = graph_of(network).output_node().all_input_nodes
    return len(found) == 1 and found[0].target in (layout.mean_over_time, layout.over_time)


def frames_left(network: Network3d, frames: int) -> int:
    """Return T' for a clip of `frames`; raises `FramesError` if the recipe's strides do not allow them."""
    return min(checked(graph_of(network), frames).values())


def flattened(network: Network3d) -> Straight:
    """Return the current network as one flat module with the same layers."""
    return straightened(network, graph_of(network), type(network).__name__).train(network.training)


def cast(network: Network3d, dtype: torch.dtype) -> Network3d:
    """Return a copy of `network` with floating-point tensors in `dtype`."""
    copied: Network3d = copy.deepcopy(network).to(dtype)
    return copied
