"""Changes to a pretrained 2D network before it is inflated: the channels of its input, and its head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
    """How kernels `(O, 3, …)` over RGB become `(O, N, …)`, and for which inputs the network's output stays the same."""

    kernels: Callable[[Tensor, int], Tensor]
    inputs: Callable[[Tensor, int], tuple[Tensor, Tensor] | None]
    """RGB images `(B, 3, H, W)`, N → images for both networks that give equal outputs; None if there are none."""


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
"""`sum`: a grey image in every channel has the same output as in RGB. `mean`: the mean over RGB in every channel, as in
cross-modality pretraining (Wang et al., "Temporal Segment Networks", arXiv:1608.00859, section 3.3); equal for N
channels of 3/N times the grey image. `repeat`: R, G, B, R, … times 3/N; equal on a repeated RGB image."""


OWN = "own"
"""Used instead of an `in_init` when the weights already have kernels over these channels."""


def default_in_init(channels: int) -> str:
    """Return `sum` for grey pictures and volumes, `mean` for stacks of optical flow and others."""
    return "sum" if channels == 1 else "mean"


@dataclass(frozen=True)
class Changes:
    """Changes to a 2D network; none by default."""

    channels: int = 0
    """Input channels; 0 keeps the network's own."""
    in_init: str = ""
    head: str = ""
    """`fresh`; `none`: return the head's input; `maps`: return the input of the pool before it; empty: its own."""
    classes: int = 0
    """Classes of a fresh head."""
    seed: int = 0
    without: str = ""
    """The name of a module without weights that is removed."""
    stem_stride: int = 0
    """Stride of the convolution over the image; 0 keeps its own."""
    dilated: str = ""
    """Stages with dilated kernels instead of strides, such as `layer3=2,layer4=4`."""
    same: bool = False
    """Whether strided layers pad like TensorFlow's 'SAME' and the input is normalised to [-1, 1]."""

    @classmethod
    def asked(
        cls, in_channels: int | None, in_init: str | None, num_classes: int | None, head: str, seed: int
    ) -> Changes:
        """Return the changes for the command-line options of those names; raises `BackboneError`."""
        check_positive(in_channels=in_channels, num_classes=num_classes)
        channels = 0 if in_channels in (None, RGB) else int(in_channels or 0)
        if num_classes is not None and head:
            raise BackboneError("--num-classes needs a head; drop --no-head or --no-pool")
        if in_init is not None and not channels:
            raise BackboneError("--in-init needs --in-channels other than 3")
        how = (in_init or default_in_init(channels)) if channels else ""
        fresh = num_classes is not None
        return cls(channels, how, "fresh" if fresh else head, num_classes or 0, seed if fresh else 0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Changes:
        """Read the changes in a file; raises `BackboneError` for impossible ones.

        Files of older versions have a `stem_rank`, which only the stem of r2plus1d_18 had.
        """
        if values.get("stem_rank", 0) != 0:
            raise BackboneError("r2plus1d_18 is no longer supported: its stem is not the 2D network's; use r3d_18")
        changes = cls(**{name: value for name, value in values.items() if name != "stem_rank"})
        changes.check()
        return changes

    @property
    def before(self) -> Changes:
        """Return the changes that the network had before its weights were trained."""
        return Changes(self.channels, OWN) if self.in_init == OWN else UNCHANGED

    def check(self) -> None:
        """Raise `BackboneError` for impossible changes."""
        numbers = {"channels": MOST_CHANNELS, "classes": MOST_CLASSES, "seed": 2**63}
        numbers |= {"stem_stride": MOST_CHANNELS}
        for name, most in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise BackboneError(f"{name} is {value!r}; it must be an integer from 0 to {most}")
        if not re.fullmatch(r"(\w+=[1-9]\d?(,(?!$)|$))*", str(self.dilated)):
            raise BackboneError(f"dilated is {self.dilated!r}; it must look like layer3=2,layer4=4")
        if type(self.same) is not bool:
            raise BackboneError(f"same is {self.same!r}; it must be true or false")
        if self.channels and self.in_init not in (*IN_INITS, OWN):
            raise BackboneError(f"unknown --in-init {self.in_init!r}; known: {', '.join(IN_INITS)}")
        if self.head not in ("", "fresh", *HEADLESS):
            raise BackboneError(f"unknown head {self.head!r}; known: fresh, {', '.join(HEADLESS)}")

    def apply(self, model: nn.Module) -> nn.Module:
        """Apply the changes to `model` in place and return the network, which may be a new module with its tensors.

        Raises `BackboneError` if it has no RGB input, no feature maps, or no unambiguous head.
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


def check_positive(**numbers: int | None) -> None:
    """Raise `BackboneError` for a number that is given and is not an integer above 0."""
    for name, value in numbers.items():
        if value is not None and (type(value) is not int or value < 1):
            hint = ", or head='none' for features" if name == "num_classes" else ""
            raise BackboneError(f"{name} is {value!r}; give an integer above 0{hint}")


HEADLESS = ("none", "maps")

STRUCTURE = ("without", "stem_stride", "dilated", "same")
"""Changes that make another network with the same tensors."""


def _stems(model: nn.Module, channels: int = 0) -> list[nn.Conv2d]:
    """Return the convolutions over an image, of RGB or of `channels` channels."""
    found = _over(model, channels or RGB)
    if not found:
        raise BackboneError("--in-channels needs a convolution over 3 channels; the network has none")
    return found


def _over(model: nn.Module, channels: int) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels and m.groups == 1]


def stem_channels(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Return the input channels of a weight file's first kernels; 0 if they are those of RGB."""
    kernels = model.state_dict()
    stems = {id(stem.weight) for stem in _over(model, RGB)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in stems]
    found = {state[name].shape[1] for name in names if name in state and state[name].dim() == kernels[name].dim()}
    return found.pop() if len(found) == 1 and found != {RGB} else 0


def head_of(model: nn.Module) -> str:
    """Return the name of the last linear or convolutional layer, if no other has as many outputs."""
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if not layers:
        raise BackboneError("the network has no linear or convolutional layer to use as its head")
    name: str = list(layers)[-1]
    alike = [other for other, layer in layers.items() if _outputs(layer) == _outputs(layers[name])]
    if len(alike) > 1 and isinstance(layers[name], nn.Linear):
        alike = [other for other in alike if isinstance(layers[other], nn.Linear)]
    if len(alike) > 1:
        raise BackboneError(f"can't tell which of {', '.join(alike[:4])} is the head: replace it in Python")
    return name


def classes_of(model: nn.Module) -> int:
    """Return the number of outputs of the last linear or convolutional layer; 0 if there is none."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return _outputs(heads[-1]) if heads else 0


def with_head(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return `state` with zeros for the head if that is all it lacks, as self-supervised weights do."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    with suppress(BackboneError):
        if missing and missing == [key for key in own if key.startswith(f"{head_of(model)}.")]:
            return {key: state[key] if key in state else torch.zeros_like(own[key]) for key in own}
    return dict(state)


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _fresh(head: Any, classes: int, seed: int) -> nn.Module:
    """Return a new head of the same kind: weights with a standard deviation of 0.01, as in I3D, and zero biases."""
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
    """Replace the layer called `name` by the identity while active."""
    with ExitStack() as stack:
        for model in models:
            stack.callback(_put, model, name, model.get_submodule(name))
            _put(model, name, nn.Identity())
        yield
