"""Read checkpoints of other frameworks like our own, recognising their network from their tensors."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from i3dconvert.backbones import Backbone, Changes, Origin, Weights, build, parse, qualified_names
from i3dconvert.backbones.changes import RGB, default_in_init, head_of
from i3dconvert.backbones.in_memory import shape_over_images
from i3dconvert.backbones.wrappers import bare
from i3dconvert.checkpoint.document import Document
from i3dconvert.errors import LayoutError
from i3dconvert.files import in_folder
from i3dconvert.frameworks import Framework, Target, framework_of, split
from i3dconvert.lift.attention.divided import TIME
from i3dconvert.lift.attention.joint import RELATIVE
from i3dconvert.lift.planning import plan
from i3dconvert.weights import State, digest, read_state, shapes_of


def adopt(path: Path, layout: str) -> tuple[Document, State]:
    """Return a document and the tensors, under our names, of a framework's checkpoint; `layout` is `NAME[:NETWORK]`.

    Its weights count as fine-tuned, as they equal no 2D network. Raises `LayoutError`, `WeightsError`.
    """
    framework, name = framework_of(layout), split(layout)[1]
    tensors = framework.unwrapped(bare(read_state(in_folder(path))), str(path))
    fitting: dict[str, tuple[Document, State]] = {}
    refusals = []
    if name and (own := framework.network(name) if not framework.named_by_backbone else None) and own.package:
        raise LayoutError(
            f"the tensors of {path} do not tell which {name} it is; in Python: "
            "inflate(model2d, 'volumetric').load_state_dict(torch.load(path))"
        )
    for target in (target for target in framework.targets if not target.package):
        if not name and not all(
            any(fnmatchcase(key, glob) for key in tensors) for glob in framework.format_of(target).needs
        ):
            continue
        if framework.named_by_backbone or name in ("", target.name):
            try:
                fitting[target.name] = _adopted(framework, target, tensors, name, path)
            except LayoutError as error:
                refusals.append(str(error))
    found = list(fitting.values())
    if any(_means(document) != _means(found[0][0]) for document, _ in found):
        choices = " and ".join(f"{framework.name}:{target}" for target in fitting)
        raise LayoutError(f"{path} fits {choices}, which have the same tensors; name one")
    if not fitting:
        if not refusals:
            framework.network(name)
        raise LayoutError("; ".join(refusals))
    return found[0]


def _means(document: Document) -> tuple[Any, ...]:
    """Return what a document says about its network."""
    assert document.origin is not None
    inflation, origin = document.inflation, document.origin
    return inflation.recipe, inflation.style, origin.backbone, origin.changes, origin.preprocessing, document.sha256


def _adopted(framework: Framework, target: Target, tensors: State, name: str, path: Path) -> tuple[Document, State]:
    state = framework.restored(target, tensors, str(path))
    backbone, changes, classes = _backbone(state, framework, target, name, path)
    if target.headless and changes.head != "none":
        raise LayoutError(f"{path} has a head, but {framework.name}'s {target.name} has none")
    channels = changes.channels or RGB
    preprocessing = framework.format_of(target).preprocessing
    preprocessing = preprocessing if channels == RGB else preprocessing.with_channels(channels)
    shape = (channels, preprocessing.size, preprocessing.size)
    origin = Origin(backbone, Weights("file", path=str(path)), preprocessing, shape, classes, target.changed(changes))
    model = origin.build()
    inflation = plan(model, target.recipe, target.style, shape).inflation
    for key, tensor in model.state_dict().items():
        found, wanted = tuple(state[key].shape), inflation.shape(key, tensor)
        if found != wanted:
            raise LayoutError(f"{path} has {key} {found}, but {framework.name}'s {target.name} has {wanted}")
    return Document(inflation, origin, digest(state), finetuned=True), state


def _backbone(
    state: State, framework: Framework, target: Target, name: str, path: Path
) -> tuple[Backbone, Changes, int]:
    """Return the 2D network whose inflated kernels the checkpoint has, its changes, and its number of classes."""
    flat = {key: shape_over_images(tensor) for key, tensor in state.items() if not fnmatchcase(key, f"*{TIME}.*")}
    if framework.named_by_backbone and not name:
        raise LayoutError(
            f"{framework.name} has many networks; name that of {path} with --from-layout {framework.name}:NAME"
        )
    candidates = [f"timm/{name}"] if framework.named_by_backbone else qualified_names(framework.sources)
    for candidate in candidates:
        if not target.takes(candidate):
            continue
        source, bare = parse(candidate)
        backbone = Backbone.of(source, bare)
        model = build(backbone)
        head = head_of(model)
        own = shapes_of(model.state_dict())
        if not flat.keys() <= own.keys() or not own.keys() - flat.keys() <= {f"{head}.weight", f"{head}.bias"}:
            continue
        odd = [key for key in flat if flat[key] != own[key] and (not key.startswith(f"{head}.") or not flat[key])]
        odd = [key for key in odd if not key.endswith(RELATIVE)]  # only the inflation knows their size
        stems = [key for key in odd if flat[key][:1] == own[key][:1] and flat[key][2:] == own[key][2:]]
        if odd != stems or len(stems) > 1:
            continue
        channels = flat[stems[0]][1] if stems else 0
        changes = Changes(channels, default_in_init(channels) if channels else "")
        if f"{head}.weight" not in flat:
            return backbone, replace(changes, head="none"), 0
        classes = flat[f"{head}.weight"][0]
        given = None if classes == own[f"{head}.weight"][0] else classes
        return Backbone.of(source, bare, classes=given), changes, classes
    raise LayoutError(f"{path} has the names of {framework.name}, but the shapes of no known network")
