"""Name the 2D network of a file that was made from a module in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from i3dconvert import trust
from i3dconvert.backbones import user
from i3dconvert.backbones.changes import UNCHANGED
from i3dconvert.backbones.in_memory import as_recorded
from i3dconvert.backbones.origin import MEMORY, Backbone, Origin, Weights, build
from i3dconvert.backbones.source import IMAGENET_CLASSES, classes_of
from i3dconvert.checkpoint.document import Document
from i3dconvert.errors import CheckpointError
from i3dconvert.names import USER, parse


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
