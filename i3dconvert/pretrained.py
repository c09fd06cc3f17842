"""`from_pretrained`, `save_pretrained` and `push_to_hub`, by huggingface_hub's own mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from i3dconvert import checkpoint
from i3dconvert.checkpoint import Document
from i3dconvert.errors import CheckpointError, I3DError, first_line
from i3dconvert.files import WEIGHTS
from i3dconvert.hub import CONFIG, describe_in, named_origin
from i3dconvert.lift.network import Network3d, inflation_of

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
except ImportError as missing:
    raise CheckpointError(
        f"the hub's files are read and written by huggingface_hub ({missing}): pip install huggingface_hub"
    ) from None

_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


class _Pretrained(ModelHubMixin):
    """A network as the mixin saves and loads it."""

    def __init__(self, network: Network3d, finetuned: bool = False) -> None:
        self.network, self.finetuned = network, finetuned

    def _save_pretrained(self, save_directory: Path) -> None:
        origin = named_origin(self.network)
        sha256 = checkpoint.save(self.network, save_directory / WEIGHTS, force=True, finetuned=self.finetuned)
        document = Document(inflation_of(self.network), origin, sha256, self.finetuned)
        unproved = "it was saved from memory; `i3dconvert verify` checks it"
        describe_in(save_directory, self.network, document, None, unproved, None)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **given: Any) -> Any:
        if Path(model_id).is_dir():
            return checkpoint.load(Path(model_id) / WEIGHTS)
        options = {key: given[key] for key in _OPTIONS if key in given}
        folder = snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG], **options)
        return checkpoint.load(Path(folder) / WEIGHTS)


def from_pretrained(name: str | Path, **options: Any) -> Network3d:
    """The network in a folder, or in a repository on the hub (`options` are huggingface_hub's).

    Raises `CheckpointError`.
    """
    try:
        found: Any = _Pretrained.from_pretrained(str(name), **options)
    except I3DError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub client has its own errors for every way to be offline
        raise CheckpointError(f"{name} is no folder, and is not to be had from the hub: {first_line(error)}") from None
    network: Network3d = found
    return network


def save_pretrained(network: Network3d, folder: str | Path, finetuned: bool = False) -> None:
    """Write `model.safetensors`, configuration, preprocessing and a card into `folder`.

    Raises `CheckpointError`, and `ExportError` for a network that was made in memory.
    """
    _Pretrained(network, finetuned).save_pretrained(folder)


def push_to_hub(network: Network3d, name: str, finetuned: bool = False, **options: Any) -> str:
    """Upload what `save_pretrained` writes to the hub's repository `name`; returns its address."""
    address: str = _Pretrained(network, finetuned).push_to_hub(name, **options)
    return address
