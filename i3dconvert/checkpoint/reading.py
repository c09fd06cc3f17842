"""Reading a checkpoint, and building its network again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from i3dconvert.backbones.in_memory import as_recorded
from i3dconvert.backbones.origin import of_a_user
from i3dconvert.backbones.wrappers import unwrapped
from i3dconvert.checkpoint.document import KEY, Document
from i3dconvert.checkpoint.present import note, note_document
from i3dconvert.errors import CheckpointError, WeightsError
from i3dconvert.files import check_input, in_folder
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.exchange import put
from i3dconvert.lift.network import Network3d, fill, inflation_of, origin_of, plan
from i3dconvert.lift.seals import sealed
from i3dconvert.weights import State, classes_in, fit, nested, read_pickle, read_safetensors, read_state, tensors_in

PICKLED = (".pth", ".pt", ".pyth")
"""The suffixes of what `torch.load` reads."""


def read(path: Path, pickled: bool | None = None) -> tuple[Document, State]:
    """The document and the tensors (memory-mapped, under our names) of a checkpoint.

    Whether it is a pickle, its suffix says by default. Raises `CheckpointError`.
    """
    path = in_folder(path)
    check_input(path, CheckpointError, "a checkpoint that `i3dconvert inflate` wrote")
    if path.suffix in PICKLED if pickled is None else pickled:
        metadata, state = _read_pickle(path)
    else:
        metadata, state = read_safetensors(path, CheckpointError, "i3dconvert checkpoint")
    text = metadata.get(KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is no i3dconvert checkpoint: its metadata has no {KEY!r}; "
            "--from-layout NAME reads those of other frameworks"
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
    """The 3D network of a document over its 2D `model`, by default that of its origin, without weights (see `fill`).

    Raises `LayoutError` where its tensors are made for another framework's network alone, `CheckpointError` where only
    the user has the 2D network.
    """
    if model is None:
        if document.origin is None:
            raise CheckpointError(
                f"{where} was made from a module in memory; give that 2D module, in Python: load(path, model)"
            )
        model = document.origin.build()
    inflation = document.inflation
    trial = of_a_user(document.origin)
    planned = plan(model, inflation.recipe, inflation.style, inflation.input, trial, inflation.constants)
    network = planned.network(model)
    put(network, document.exchanged)
    note_document(network, document)
    return network


def load(path: str | Path, model: nn.Module | None = None) -> Network3d:
    """The 3D network in a checkpoint, in eval mode.

    `model` is the 2D network, needed only for checkpoints of a user's own module; it is left as it is. What the file
    records of it (another head, other classes and channels) is done to a copy. Raises `CheckpointError`.
    """
    path = Path(path)
    document, state = read(path)
    if model is not None:
        changes = document.origin.changes if document.origin is not None else document.changes
        model = as_recorded(model, changes, state)
    aligned = {key: _aligned(tensor) for key, tensor in state.items()}
    return filled(rebuild(document, model, path), aligned, path).eval()


def _aligned(tensor: Tensor) -> Tensor:
    """A tensor where torch would have put it: matrix products can differ in their last bit where it lies elsewhere."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


_ALIGNMENT = 64
"""Bytes, of memory that torch allocates on a CPU."""


def filled(network: Network3d, state: Mapping[str, Tensor], path: Path) -> Network3d:
    """`network` with the tensors of the file at `path`, which may not fit: `CheckpointError`."""
    try:
        return fill(network, state.items())
    except RuntimeError as error:
        _check_age(network, state, path)
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f"the tensors of {path} are not those of its own recipe: {' '.join(lines)}") from None


def _check_age(network: Network3d, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` where a kernel of the file is 2D and the network's is 3D: older versions left it so."""
    own = network.state_dict()
    flat = [key for key, tensor in state.items() if key in own and tensor.dim() == own[key].dim() - 1 >= 3]
    if not flat:
        return
    origin = origin_of(network)
    name = origin.backbone.qualified if origin is not None else "MODULE"
    more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
    raise CheckpointError(
        f"{path} is of an older i3dconvert, which left {flat[0]}{more} 2D; they become 3D now. Make it again: "
        f"i3dconvert inspect {path} --toml > recipe.toml && i3dconvert inflate {name} -r recipe.toml; "
        "if it was trained, load it with the version that made it"
    )


def finetuned(document: Document, weights: Path, inflated: Mapping[str, Tensor]) -> Network3d:
    """The network of a document with the state dict in `weights`, which may have another class count.

    `inflated` are the tensors of the document's file, from which the others have moved. Raises `CheckpointError`,
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
        hint = f"; these are 2D weights: i3dconvert inflate {name} -w {weights}" if flat else ""
        raise WeightsError(f"{error}{hint}") from None
    network._i3d_seals = sealed(inflated)
    note(network, finetuned=True)
    return network
