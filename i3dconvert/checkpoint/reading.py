"""Read a checkpoint and build its network again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from i3dconvert.backbones.in_memory import as_recorded
from i3dconvert.backbones.origin import of_a_user
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.checkpoint.document import KEY, Document
from i3dconvert.checkpoint.naming import named, settle
from i3dconvert.checkpoint.present import note, note_document
from i3dconvert.errors import CheckpointError, WeightsError, listed
from i3dconvert.files import check_input, in_folder
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.exchange import put
from i3dconvert.lift.network import Network3d, inflation_of, origin_of
from i3dconvert.lift.planning import fill, plan
from i3dconvert.lift.seals import sealed
from i3dconvert.weights import (
    State,
    Stream,
    classes_in,
    fit,
    nested,
    read_pickle,
    read_safetensors,
    read_state,
    tensors_in,
)

PICKLED = (".pth", ".pt", ".pyth")
"""Suffixes of files for `torch.load`."""


def read(path: Path, pickled: bool | None = None) -> tuple[Document, State]:
    """Return the document and the tensors of a checkpoint, memory-mapped and under our names.

    `pickled` defaults to what the suffix says. Raises `CheckpointError`.
    """
    path = in_folder(path)
    check_input(path, CheckpointError, "a checkpoint written by `i3dconvert inflate`")
    if path.suffix in PICKLED if pickled is None else pickled:
        metadata, state = _read_pickle(path)
    else:
        metadata, state = read_safetensors(path, CheckpointError, "i3dconvert checkpoint")
    text = metadata.get(KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is not an i3dconvert checkpoint: its metadata has no {KEY!r}; "
            "--from-layout NAME reads checkpoints of other frameworks"
        )
    document = Document.loads(text, path)
    if document.target is not None:
        state = framework_of(document.layout).restored(document.target, state, str(path))
    return document, state


def _read_pickle(path: Path) -> tuple[Mapping[str, Any], State]:
    document = read_pickle(path)
    metadata = getattr(nested(document), "_metadata", None)
    return metadata if isinstance(metadata, Mapping) else {}, tensors_in(document, path)


def rebuild(document: Document, model: nn.Module | None = None, where: str | Path = "the file") -> Network3d:
    """Build the 3D network of a document from its 2D `model`, by default its origin's, without weights (see `fill`).

    Raises `LayoutError` if its tensors are for another framework's network only, `CheckpointError` if only the user has
    the 2D network.
    """
    if model is None:
        if document.origin is None:
            raise CheckpointError(
                f"{where} was made from a module in memory; --model PATH.py:NAME names the function or module that "
                "builds it, or pass it in Python: load(path, model)"
            )
        model = document.origin.build()
    inflation = document.inflation
    trial = of_a_user(document.origin)
    planned = plan(model, inflation.recipe, inflation.style, inflation.input, trial, inflation.constants)
    network = planned.network(model)
    put(network, document.exchanged)
    note_document(network, document)
    return network


def load(path: str | Path, model: nn.Module | str | None = None) -> Network3d:
    """Return the 3D network of a checkpoint, in eval mode.

    `model` is the 2D network, or `path/to/module.py:name`, which builds it; needed only for checkpoints of a user's own
    module. It is not modified: changes that the file records (another head, other classes or channels) apply to a copy.
    Raises `CheckpointError`.
    """
    path = Path(path)
    document, state = read(path)
    is_name = isinstance(model, str)
    if isinstance(model, str):
        document, model = named(document, model, state), None
    if model is not None:
        changes = document.origin.changes if document.origin is not None else document.changes
        model = as_recorded(model, changes, state)
    network = filled(rebuild(document, model, path), _copied(state), path).eval()
    if is_name:
        settle(network, document, state)
    return network


def _copied(state: State) -> State:
    """Copy tensors that are mapped from a file, which others may overwrite while the network is used.

    The copies are at torch's alignment; otherwise, matrix products can differ in the last bit.
    """
    stream, copied = Stream(mapped=True), {}
    for key, tensor in state.items():
        copied[key] = tensor.clone()
        stream.passed(tensor)
    return copied


def filled(network: Network3d, state: Mapping[str, Tensor], path: Path) -> Network3d:
    """Fill `network` with the tensors of the file at `path`; raises `CheckpointError` if they do not fit."""
    try:
        return fill(network, state.items())
    except RuntimeError as error:
        _check_age(network, state, path)
        lines = [_LONG.sub(r"\1, …", line.strip()) for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f"the tensors of {path} do not match its recipe: {' '.join(lines)}") from None


def _check_age(network: Network3d, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` if a kernel is 2D in the file and 3D in the network, as in files of older versions."""
    own = network.state_dict()
    flat = [key for key, tensor in state.items() if key in own and tensor.dim() == own[key].dim() - 1 >= 3]
    if not flat:
        return
    origin = origin_of(network)
    name = origin.backbone.qualified if origin is not None else "MODULE"
    raise CheckpointError(
        f"{path} was written by an older i3dconvert, which left {listed(flat, most=1)} 2D. Inflate it again: "
        f"i3dconvert inspect {path} --toml > recipe.toml && i3dconvert inflate {name} -r recipe.toml; "
        "if it was trained, load it with the version that wrote it"
    )


def finetuned(document: Document, weights: Path, inflated: Mapping[str, Tensor]) -> Network3d:
    """Return a document's network with the state dict in `weights`, which may have another number of classes.

    `inflated` holds the tensors of the document's file, to tell which have moved. Raises `CheckpointError`,
    `WeightsError`.
    """
    network = rebuild(document)
    state = unwrapped(read_state(weights), network.state_dict(), str(weights))
    assert document.origin is not None
    count = classes_in(state, network, document.origin.classes)
    if count is not None:
        network = rebuild(replace(document, origin=document.origin.with_classes(count)))
    try:
        fit(network, state, str(weights))
    except WeightsError as error:
        flat = any(state[key].dim() == 4 for key in inflation_of(network).fillings if key in state)
        name = document.origin.backbone.qualified
        other = {key.partition(".")[0] for key in state.keys() ^ network.state_dict().keys()}
        hint = f"; these are 2D weights: i3dconvert inflate {name} -w {weights}" if flat else ""
        if len(other) == 1 and not flat:
            hint = (
                f"; they have another module at {next(iter(other))}: put it there in Python, load them, and call "
                "i3dconvert.save"
            )
        raise WeightsError(f"{error}{hint}") from None
    network._i3d_seals = sealed(inflated)
    note(network, finetuned=True)
    return network


_LONG = re.compile(r'((?:"[^"]*", ){2}"[^"]*"), .*"')
"""More than three keys in an error of torch."""
