"""Describe a network as it is now, for the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from i3dconvert.backbones import Changes, Origin
from i3dconvert.backbones.changes import UNCHANGED
from i3dconvert.checkpoint.document import Document
from i3dconvert.checkpoint.trained import Trained
from i3dconvert.comparison.forward import outputs
from i3dconvert.errors import CheckpointError, first_line
from i3dconvert.lift.exchange import exchanged
from i3dconvert.lift.network import Network3d, inflation_of, origin_of, set_origin
from i3dconvert.lift.reading import on_meta
from i3dconvert.lift.seals import moved
from i3dconvert.video.labels import Given, check_count, names_of


@dataclass(frozen=True)
class Noted:
    """The facts about a network besides its modules and tensors."""

    finetuned: bool = False
    """Whether a user or a file said that it was fine-tuned."""
    moved: frozenset[str] = field(default_factory=frozenset)
    """Keys of the tensors that had already moved when the network was read."""
    classes: tuple[str, ...] = ()
    changes: Changes = UNCHANGED
    """Changes to its 2D network, which was in memory."""


def noted(network: Network3d) -> Noted:
    """Return what is known of a network besides its modules."""
    found: Noted = network.__dict__["_i3d_meta"].get("noted", Noted())
    return found


def note(network: Network3d, **known: Any) -> None:
    """Update what is known of a network."""
    network._i3d_meta["noted"] = replace(noted(network), **known)


def note_document(network: Network3d, document: Document) -> None:
    """Record the metadata of a network's file."""
    set_origin(network, document.origin)
    keys = document.trained.keys if document.trained is not None else ()
    note(
        network,
        finetuned=document.finetuned,
        moved=frozenset(keys),
        classes=document.classes,
        changes=document.changes,
    )


def class_names(network: nn.Module) -> list[str]:
    """Return the class names of a network by index; none if unknown."""
    inner, origin = network_in(network), origin_of(network_in(network))
    return list(noted(inner).classes or (origin.class_names() if origin is not None else ()))


def name_classes(network: Network3d, classes: Given) -> None:
    """Set a network's class names, or read them from a path; raises `ClassesError`."""
    if classes is not None:
        note(network, classes=document_of(network, classes=classes).classes)


def document_of(
    network: Network3d, layout: str = "", finetuned: bool = False, classes: Given = None, sha256: str = ""
) -> Document:
    """Return the document that describes a network as it is now.

    Raises `CheckpointError`, naming what a file can't store, `ClassesError`, and `LayoutError`.
    """
    origin: Origin | None = origin_of(network)
    forms, known, state = exchanged(network, network._i3d_marks), noted(network), network.state_dict()
    names = names_of(classes) or known.classes
    number = _outputs(network, forms) if forms or (names and origin is None) else None
    if origin is not None and number is not None:
        origin = replace(origin, classes=number if _scores(forms, number, origin.classes) else 0)
    count = origin.classes if origin is not None else number
    if classes is not None:
        check_count(names, count or 0)
    trained = Trained.of(state, known.moved | moved(state, network._i3d_seals))
    return Document.for_layout(
        inflation_of(network),
        origin,
        layout,
        sha256=sha256,
        finetuned=finetuned or known.finetuned or trained is not None or bool(forms),
        trained=trained,
        exchanged=forms,
        classes=names if len(names) == count else (),
        changes=known.changes,
    )


def _outputs(network: Network3d, forms: Mapping[str, Any]) -> int | None:
    """Return the number of outputs for a clip, from a run on the meta device; None for maps or several outputs."""
    channels, *size = inflation_of(network).input
    bare = on_meta(network).eval()
    clip = torch.empty(1, channels, inflation_of(network).minimum_frames, *size, device="meta")
    dtype = next((tensor.dtype for tensor in bare.parameters() if tensor.is_floating_point()), clip.dtype)
    try:
        with torch.no_grad():
            found = outputs(bare(clip.to(dtype)))
    except Exception as error:
        where = ", ".join(forms) or "its modules"
        raise CheckpointError(f"the network does not run with the module at {where}: {first_line(error)}") from error
    return int(found[0].shape[1]) if len(found) == 1 and found[0].dim() == 2 else None


_WITH_OUTPUTS = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def _scores(forms: Mapping[str, Any], number: int, classes: int) -> bool:
    """Whether the outputs are scores: as many as before, or from a layer that computes scores."""
    return number == classes or any(name in str(list(forms.values())) for name in _WITH_OUTPUTS)


WRAPPERS = ("module", "_orig_mod")
"""Attributes in which DDP, moving averages and `torch.compile` keep the wrapped network."""


def network_in(network: nn.Module) -> Network3d:
    """Return the inflated network inside the wrappers of training; raises `CheckpointError`."""
    found: Any = network
    while not isinstance(found, Network3d):
        inner = next((found._modules[name] for name in WRAPPERS if found._modules.get(name) is not None), None)
        if inner is None:
            raise CheckpointError(_not_a_network(network))
        found = inner
    return found


def _not_a_network(module: nn.Module) -> str:
    what = f"{type(module).__module__}.{type(module).__qualname__}"
    if what.startswith("peft."):
        return f"{what} has adapters, which a file can't store: save the result of tuned.merge_and_unload()"
    inner = next((name for name, child in module.named_modules() if isinstance(child, Network3d)), None)
    hint = f"save the network inside it, .{inner}" if inner else "save the network that inflate or load returned"
    return f"{what} is not an inflated network: {hint}"
