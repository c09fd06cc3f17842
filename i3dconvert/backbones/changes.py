"""What is changed of a pretrained 2D network before it is inflated: the channels of its input, its head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.backbones.maps import feature_maps
from i3dconvert.backbones.same import pad_as_same
from i3dconvert.errors import BackboneError

RGB = 3
MOST_CHANNELS, MOST_CLASSES = 4096, 2**20


@dataclass(frozen=True)
class InInit:
    """How the kernels `(O, 3, …)` over RGB become `(O, N, …)`, and on which inputs the network stays equal."""

    kernels: Callable[[Tensor, int], Tensor]
    inputs: Callable[[Tensor, int], tuple[Tensor, Tensor] | None]
    """RGB images `(B, 3, H, W)`, N → images for the RGB network and for the other that give the same; None: no such."""


def _grey(images: Tensor, channels: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    grey = images[:, :1]
    return grey.expand(-1, RGB, -1, -1), grey.expand(-1, channels, -1, -1) * scale


IN_INITS: Mapping[str, InInit] = {
    "sum": InInit(lambda w, n: w.sum(1, keepdim=True).expand(-1, n, *w.shape[2:]) / n, _grey),
    "mean": InInit(lambda w, n: w.mean(1, keepdim=True).expand(-1, n, *w.shape[2:]), lambda x, n: _grey(x, n, RGB / n)),
    "repeat": InInit(
        lambda w, n: w[:, [index % RGB for index in range(n)]] * RGB / n,
        lambda x, n: (x, x.repeat(1, n // RGB, 1, 1)) if n % RGB == 0 else None,
    ),
}
"""`sum`: a grey image in every channel gives what it gives in RGB. `mean`: the mean over RGB in every channel, as in
cross-modality pretraining (Wang et al., "Temporal Segment Networks", arXiv:1608.00859, section 3.3), equal for N
channels of 3/N of the grey image. `repeat`: R, G, B, R, … scaled by 3/N, equal on an RGB image repeated."""


OWN = "own"
"""In the place of an `in_init`: the weights have kernels over these channels by themselves."""


def default_in_init(channels: int) -> str:
    """`sum` for grey pictures and volumes, `mean` for stacks of optical flow and the rest."""
    return "sum" if channels == 1 else "mean"


@dataclass(frozen=True)
class Changes:
    """Nothing, by default."""

    channels: int = 0
    """Input channels; 0 keeps the network's own."""
    in_init: str = ""
    head: str = ""
    """`fresh`; `none`, which gives what goes into it; `maps`, what goes into the pool in front of it; or its own."""
    classes: int = 0
    """Classes of a fresh head."""
    seed: int = 0
    without: str = ""
    """A module without weights that is left out, by name."""
    stem_stride: int = 0
    """Stride of the convolution over the image; 0 keeps its own."""
    dilated: str = ""
    """Stages that widen their kernels instead of taking strides, `layer3=2,layer4=4`."""
    same: bool = False
    """Whether strided layers pad as TensorFlow's 'SAME' does, and the input is normalised as there, to [-1, 1]."""

    @classmethod
    def asked(
        cls, in_channels: int | None, in_init: str | None, num_classes: int | None, head: str, seed: int
    ) -> Changes:
        """What a user asks for by the options of those names; raises `BackboneError`."""
        channels = 0 if in_channels in (None, RGB) else int(in_channels or 0)
        if num_classes is not None and head:
            raise BackboneError("a network without a head has no --num-classes")
        if in_init is not None and not channels:
            raise BackboneError("--in-init is for another number of --in-channels than 3")
        how = (in_init or default_in_init(channels)) if channels else ""
        fresh = num_classes is not None
        return cls(channels, how, "fresh" if fresh else head, num_classes or 0, seed if fresh else 0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Changes:
        """Read what a file records; raises `BackboneError` for what no network takes.

        Files of older versions have a `stem_rank`, which only the stem of r2plus1d_18 had.
        """
        if values.get("stem_rank", 0) != 0:
            raise BackboneError("r2plus1d_18 is no longer supported: its stem is not the 2D network's; use r3d_18")
        changes = cls(**{name: value for name, value in values.items() if name != "stem_rank"})
        changes.check()
        return changes

    @property
    def before(self) -> Changes:
        """What is changed before the network gets its weights, which were trained with it."""
        return Changes(self.channels, OWN) if self.in_init == OWN else UNCHANGED

    def check(self) -> None:
        """Raise `BackboneError` for what can't be."""
        numbers = {"channels": MOST_CHANNELS, "classes": MOST_CLASSES, "seed": 2**63}
        numbers |= {"stem_stride": MOST_CHANNELS}
        for name, most in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise BackboneError(f"no network with {name} {value!r}: it takes a number up to {most}")
        if not re.fullmatch(r"(\w+=[1-9]\d?(,(?!$)|$))*", str(self.dilated)):
            raise BackboneError(f"no network with dilated {self.dilated!r}: it is like layer3=2,layer4=4")
        if type(self.same) is not bool:
            raise BackboneError(f"no network with same {self.same!r}: it is true or false")
        if self.channels and self.in_init not in (*IN_INITS, OWN):
            raise BackboneError(f"no --in-init {self.in_init!r}; known: {', '.join(IN_INITS)}")
        if self.head not in ("", "fresh", *HEADLESS):
            raise BackboneError(f"no head {self.head!r}; known: fresh, {', '.join(HEADLESS)}")

    def apply(self, model: nn.Module) -> nn.Module:
        """The changed network, `model` itself or with its tensors; `model` is changed in place.

        Raises `BackboneError` where it has no RGB input, no feature maps, or a head that can't be told.
        """
        self.check()
        if self.channels and self.in_init == OWN:
            for stem in _stems(model) if not _over(model, self.channels) else ():
                kernels = stem.weight.new_empty(len(stem.weight), self.channels, *stem.weight.shape[2:])
                stem.weight = nn.Parameter(kernels, stem.weight.requires_grad)
                stem.in_channels = self.channels
        elif self.channels:
            for stem in _stems(model):
                adapted = IN_INITS[self.in_init].kernels(stem.weight.detach().double(), self.channels)
                stem.weight = nn.Parameter(adapted.to(stem.weight.dtype).contiguous(), stem.weight.requires_grad)
                stem.in_channels = self.channels
        if self.stem_stride:
            for stem in _stems(model, self.channels):
                stem.stride = (self.stem_stride,) * 2
        for stage, dilation in (text.split("=") for text in self.dilated.split(",") if text):
            _dilate(_submodule(model, stage), int(dilation))
        if self.same:
            pad_as_same(model)
        if self.without:
            _submodule(model, self.without)
            _put(model, self.without, nn.Identity())
        if self.head == "maps":
            return feature_maps(model, head_of(model), self.channels or RGB)
        if self.head:
            name = head_of(model)
            replaced = model.get_submodule(name)
            _put(model, name, nn.Identity() if self.head == "none" else _fresh(replaced, self.classes, self.seed))
        return model


UNCHANGED = Changes()

HEADLESS = ("none", "maps")

STRUCTURE = ("without", "stem_stride", "dilated", "same")
"""What makes it another network, with the same tensors."""


def _stems(model: nn.Module, channels: int = 0) -> list[nn.Conv2d]:
    """The convolutions over an image, of RGB or of so many `channels`."""
    found = _over(model, channels or RGB)
    if not found:
        raise BackboneError("the network has no convolution over 3 channels whose kernels --in-channels could spread")
    return found


def _over(model: nn.Module, channels: int) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels and m.groups == 1]


def stem_channels(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """The channels that the weights of a file have their first kernels over; 0 where they fit those over RGB."""
    kernels = model.state_dict()
    stems = {id(stem.weight) for stem in _over(model, RGB)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in stems]
    found = {state[name].shape[1] for name in names if name in state and state[name].dim() == kernels[name].dim()}
    return found.pop() if len(found) == 1 and found != {RGB} else 0


def head_of(model: nn.Module) -> str:
    """The name of the last linear or convolutional layer, the only one with so many outputs."""
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if not layers:
        raise BackboneError("the network has no linear or convolutional layer, hence no head")
    name: str = list(layers)[-1]
    alike = [other for other, layer in layers.items() if _outputs(layer) == _outputs(layers[name])]
    if len(alike) > 1 and isinstance(layers[name], nn.Linear):
        alike = [other for other in alike if isinstance(layers[other], nn.Linear)]
    if len(alike) > 1:
        raise BackboneError(f"which of {', '.join(alike[:4])} is the head can't be told")
    return name


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _fresh(head: Any, classes: int, seed: int) -> nn.Module:
    """A head of the same kind: weights of deviation 0.01, as I3D's heads start, and no bias."""
    options: dict[str, Any] = {"bias": head.bias is not None, "dtype": head.weight.dtype}
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, classes, **options)
    else:
        fresh = nn.Conv2d(head.in_channels, classes, head.kernel_size, head.stride, head.padding, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fresh.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.copy_(drawn if parameter.dim() > 1 else torch.zeros_like(drawn))
    return fresh.train(head.training)


def _dilate(stage: nn.Module, dilation: int) -> None:
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size != (1, 1):
                layer.dilation = layer.padding = (dilation, dilation)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise BackboneError(f"the network has no module {name!r}") from None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@contextmanager
def beheaded(*models: nn.Module, name: str) -> Iterator[None]:
    """The networks without the layer called `name`, giving what goes into it."""
    with ExitStack() as stack:
        for model in models:
            stack.callback(_put, model, name, model.get_submodule(name))
            _put(model, name, nn.Identity())
        yield
