"""Choose and load the 2D network that a user asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from i3dconvert import catalogue, trust
from i3dconvert.backbones import user
from i3dconvert.backbones.changes import OWN, RGB, UNCHANGED, Changes, classes_of, stem_channels, with_head
from i3dconvert.backbones.images import Shape, check_shape
from i3dconvert.backbones.library import Library
from i3dconvert.backbones.origin import Backbone, Origin, Weights, build, library, state_of
from i3dconvert.errors import BackboneError, WeightsError
from i3dconvert.names import USER, parse
from i3dconvert.video.preprocessing import Preprocessing
from i3dconvert.weights import SUFFIXES, State, classes_in, digest, fit, inspect, randomise

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Source:
    """A 2D network by name: `resnet50`, `timm/NAME`, `hf/…`, or `PATH.py:NAME`, whose code is run."""

    name: str
    weights: str = "default"
    """`default`, the name of a pretrained set, `random`, or the path of a file."""
    seed: int = 0
    """Seeds random weights."""
    features: bool = False
    """Whether to build a timm backbone without its head, which returns a list of feature maps."""
    size: int | None = None
    """Height and width in pixels that it is traced at; by default the backbone's own."""
    allow_nonfinite: bool = False
    """Whether to accept weights with NaN or infinite values."""
    changes: Changes = UNCHANGED
    """Applied to the input and the head after the weights are loaded."""
    input: Shape | None = None
    """The image shape `(C, H, W)` that a user's own network is traced at, if it can't be found out."""

    def load(self, progress: bool = False) -> tuple[nn.Module, Origin]:
        """Return the network and its origin.

        Raises `BackboneError` for an unknown name or impossible changes, `WeightsError` for weights that can't be read,
        do not fit, or are not all finite.
        """
        changes = self.changes
        changes.check()
        backbone, weights = self._chosen()
        name, library2d = backbone.name, backbone.library
        model = build(backbone)  # before the weights, as it checks a folder's configuration
        state = state_of(backbone, weights, progress)
        classes = 0 if self.features else classes_of(model) or IMAGENET_CLASSES
        if state is not None:
            where = weights.path or f"{backbone.qualified} {weights}"
            state = backbone.canonical(state, model, where)
            if changes.head:
                state = with_head(state, model)
            if changes.channels and stem_channels(model, state) == changes.channels:
                changes = replace(changes, in_init=OWN)
                model = changes.before.apply(model)
            if (count := classes_in(state, model, classes)) is not None:
                backbone = Backbone.of(backbone.source, name, weights.name, count)
                model, classes = changes.before.apply(build(backbone)), count
        preprocessing = library2d.preprocessing(name, weights.name)
        if (changes.channels or changes.same) and backbone.arguments.get("transform_input"):
            # The network's own conversion from ImageNet's normalisation of RGB to this one.
            preprocessing = replace(preprocessing, mean=(0.5,) * RGB, std=(0.5,) * RGB)
            backbone = replace(backbone, arguments=dict(backbone.arguments) | {"transform_input": False})
            model = changes.before.apply(build(backbone))
        size = self.size or library2d.image_size(name, weights.name, backbone.arguments)
        shape = self.input or (library2d.channels(name, model, size), size, size)
        if backbone.source == USER:
            preprocessing = Preprocessing.of_images(shape)
        elif self.size:
            preprocessing = preprocessing.at(self.size)
        if state is None:
            randomise(model, self.seed, shape)
            sha256 = digest(model.state_dict())
        else:
            _fit(model, state, where, backbone)
            sha256 = inspect(model.state_dict(), where, self.allow_nonfinite, mapped=weights.kind == "file")
        origin = Origin(backbone, replace(weights, sha256=sha256), preprocessing, shape, classes)
        return changes.apply(model), origin.changed(changes)

    def _chosen(self) -> tuple[Backbone, Weights]:
        """Return the backbone and the weights."""
        source, name = parse(self.name)
        if self.input is not None:
            if source != USER:
                raise BackboneError(f"--input is for your own network; for {self.name}, use --size and --in-channels")
            check_shape(self.input, self.size)
        library2d, weights = library(source), self.weights
        if self.features and source != "timm":
            raise BackboneError(f"only timm's backbones (timm/NAME) return feature maps; {self.name} is not one")
        if source == USER:
            trust.remember(user.split(name)[0])
        if source == "timm" and "." in name and weights == "default":
            name, _, weights = name.partition(".")
        chosen = _weights(library2d, name, weights, self.seed)
        backbone = Backbone.of(source, name, chosen.name)
        if self.features:
            backbone = replace(backbone, arguments={**backbone.arguments, "features_only": True})
        return backbone, chosen


def _weights(library2d: Library, name: str, weights: str, seed: int) -> Weights:
    if weights == "random":
        return Weights("random", seed=seed)
    path = Path(weights)
    if library2d.hub and weights.startswith(library2d.hub):
        return Weights("pretrained", name=weights)
    if path.suffix in SUFFIXES or "/" in weights:
        return Weights("file", name=library2d.recognise(name, path.name), path=str(path))
    offered = library2d.offered(name)
    if weights == "default" and offered:
        return Weights("pretrained", name=offered[0])
    if weights in offered:
        return Weights("pretrained", name=weights)
    sets = f"available: {', '.join(offered)}" if offered else "there are no pretrained weights for it"
    wanted = "" if weights == "default" else f" weights {weights!r};"
    raise WeightsError(f"{name} has no{wanted or ' default weights;'} {sets}; or -w PATH, -w random")


def _fit(model: nn.Module, state: State, where: str, backbone: Backbone) -> None:
    try:
        fit(model, state, where)
    except WeightsError as error:
        others = _with_as_many(state)
        known = bool(others) and backbone.qualified not in others
        hint = f"; it has as many parameters as {others[0]}: i3dconvert inflate {others[0]} -w {where}" if known else ""
        if channels := stem_channels(model, state):
            hint = f"; its first kernels have {channels} channel{'s' * (channels > 1)}: use --in-channels {channels}"
        elif with_head(state, model).keys() != state.keys():
            hint = "; it has no head: use --no-head, or --num-classes N for a new one"
        raise WeightsError(f"{error}{hint}") from None


def _with_as_many(state: State) -> list[str]:
    """Return the backbones with as many parameters as the state dict, by the tables of the libraries."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(tensor.numel() for key, tensor in state.items() if not key.endswith(buffers))
    tables = {"": catalogue.read("torchvision"), "timm/": catalogue.read("timm")}
    return [f"{prefix}{name}" for prefix, table in tables.items() for name in table if table[name].parameters == count]
