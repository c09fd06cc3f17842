"""Checkpoints of other frameworks, read as if they were ours: which network they are of follows from their tensors."""

from __future__ import annotations

from pathlib import Path

from i3dconvert.backbones import Backbone, Origin, Weights, build, library, parse
from i3dconvert.backbones.likely import likely
from i3dconvert.checkpoint import Document
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks import Framework, Target, framework, split
from i3dconvert.kernels import Style
from i3dconvert.lift.network import plan
from i3dconvert.weights import State, classes_in, digest, read_state


def adopt(path: Path, layout: str) -> tuple[Document, State]:
    """The document and the tensors, under our names, of a framework's checkpoint; `layout` is `NAME` or `NAME:NETWORK`.

    Its weights count as fine-tuned: there is no 2D network that they should be equal to. Raises `LayoutError`,
    `WeightsError`.
    """
    known, name = framework(layout), split(layout)[1]
    tensors = read_state(path)
    refusals = []
    for target in known.targets:
        if known.sources == "timm" or name in ("", target.name):
            try:
                return _adopted(known, target, tensors, name, path)
            except LayoutError as error:
                refusals.append(str(error))
    if not refusals:
        known.network(name)
    raise LayoutError("; ".join(refusals))


def _adopted(known: Framework, target: Target, tensors: State, name: str, path: Path) -> tuple[Document, State]:
    state = known.restored(target, tensors, str(path))
    backbone, classes = _backbone(state, known, name, path)
    if not target.takes(backbone.qualified):
        raise LayoutError(f"{path} is of a {backbone.qualified}, of which {known.name}'s {target.name} is no 3D form")
    shape = (3, known.preprocessing.size, known.preprocessing.size)
    origin = Origin(backbone, Weights("file", path=str(path)), known.preprocessing, shape, classes)
    model = build(backbone)
    inflation = plan(model, target.recipe, Style(), shape).inflation
    for key, tensor in model.state_dict().items():
        found, wanted = tuple(state[key].shape), inflation.shape(key, tensor)
        if found != wanted:
            raise LayoutError(f"{path} has {key} {found} where {known.name}'s {target.name} has {wanted}")
    return Document(inflation, origin, digest(state), finetuned=True), state


def _backbone(state: State, known: Framework, name: str, path: Path) -> tuple[Backbone, int]:
    """The 2D network whose kernels the checkpoint's are over time, and the number of its classes."""
    flat = {key: tensor[:, :, 0] if tensor.dim() == 5 else tensor for key, tensor in state.items()}
    found = f"timm/{name}" if known.sources == "timm" and name else likely(flat, "torchvision", "")
    if found is None:
        hint = f"; --from-layout {known.name}:NAME says which it is" if known.sources == "timm" else ""
        raise LayoutError(f"{path} has the names of {known.name}, but the shapes of no network known here{hint}")
    source, bare = parse(found)
    known2d = library(source)
    backbone = Backbone(source, bare, known2d.arguments(bare, None, None), known2d.version)
    model = build(backbone)
    if missing := sorted(model.state_dict().keys() - state.keys()):
        raise LayoutError(f"{path} lacks {', '.join(missing[:3])}, which {found} has")
    classes = classes_in(flat, model, 1000)
    if classes is None:
        return backbone, 1000
    return Backbone(source, bare, known2d.arguments(bare, None, classes), backbone.version), classes
