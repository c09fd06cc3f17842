"""Name the 2D network of a file that was made from a module in memory, and find out whether it has its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from i3dconvert import trust
from i3dconvert.backbones import user
from i3dconvert.backbones.changes import UNCHANGED, classes_of
from i3dconvert.backbones.in_memory import as_recorded
from i3dconvert.backbones.origin import MEMORY, Backbone, Origin, Weights, build
from i3dconvert.backbones.source import IMAGENET_CLASSES
from i3dconvert.checkpoint.document import Document
from i3dconvert.errors import CheckpointError, WeightsError
from i3dconvert.lift.network import Network3d, inflation_of, set_origin
from i3dconvert.names import USER, parse
from i3dconvert.weights import digest


def named(document: Document, name: str, state: Mapping[str, Tensor]) -> Document:
    """Return the document of a network that `name` builds in 2D; `PATH.py:NAME` runs the user's file.

    The changes that the file records apply unless `name` builds the network with them, as the shapes in `state` show.
    Without a `name`, the document is unchanged. Raises `CheckpointError` if it names its 2D network, `BackboneError`.
    """
    if not name:
        return document
    if document.origin is not None:
        raise CheckpointError(f"the file names its 2D network, {document.origin.backbone.qualified}; omit --model")
    source, inner = parse(name)
    if source == USER:
        trust.remember(user.split(inner)[0])
    backbone = Backbone.of(source, inner)
    model = build(backbone)
    changed = document.changes != UNCHANGED and as_recorded(model, document.changes, state) is not model
    weights = Weights("pretrained", name=user.AS_BUILT) if source == USER else Weights(MEMORY)
    classes = classes_of(model) or IMAGENET_CLASSES
    origin = Origin(backbone, weights, document.preprocessing, document.inflation.input, classes)
    return replace(document, origin=origin.changed(document.changes) if changed else origin, changes=UNCHANGED)


def settle(network: Network3d, document: Document, state: Mapping[str, Tensor]) -> bool:
    """Record whose weights were inflated into a network that `named` gave its 2D network; `state` are the file's.

    They are those that the user's function builds, if it gives all tensors that training has not moved; otherwise those
    of a module in memory. Returns whether they are the function's.
    """
    origin = document.origin
    assert origin is not None
    moved = document.trained.keys if document.trained is not None else state.keys() if document.finetuned else ()
    still = {key: tensor for key, tensor in state.items() if key not in moved}
    found = replace(origin, weights=Weights(MEMORY))
    with suppress(WeightsError):
        sha256 = digest(origin.unchanged().load().state_dict())
        built = replace(origin, weights=replace(origin.weights, sha256=sha256))
        inflation, state2d = inflation_of(network), built.load().state_dict()
        if any(map(torch.is_floating_point, still.values())) and not inflation.moved(state2d, still):
            found = built
    set_origin(network, found)
    return found.weights.kind != MEMORY
