"""`from_pretrained`, `save_pretrained` and `push_to_hub`, based on huggingface_hub's mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from i3dconvert import checkpoint
from i3dconvert.checkpoint import document_of, network_in
from i3dconvert.errors import CheckpointError, I3DError, first_line
from i3dconvert.files import WEIGHTS
from i3dconvert.hub.folder import CONFIG, describe_in, finetuned_by, named_origin
from i3dconvert.lift.network import Network3d
from i3dconvert.video.labels import Given

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
except ImportError as missing:
    raise CheckpointError(f"files of the hub need huggingface_hub ({missing}): pip install huggingface_hub") from None

_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


class _Pretrained(ModelHubMixin):
    """Adapts a network to the mixin."""

    def __init__(self, network: nn.Module, finetuned: bool = False, classes: Given = None) -> None:
        self.network, self.finetuned, self.classes = network_in(network), finetuned, classes

    def _save_pretrained(self, save_directory: Path) -> None:
        named_origin(self.network)
        path = save_directory / WEIGHTS
        sha256 = checkpoint.save(self.network, path, force=True, finetuned=self.finetuned, classes=self.classes)
        document = document_of(self.network, finetuned=self.finetuned, sha256=sha256)
        unproved = "it was saved from memory; check it with `i3dconvert verify`"
        unproved = finetuned_by(document) if document.finetuned else unproved
        describe_in(save_directory, self.network, document, None, unproved, None)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **given: Any) -> Any:
        if Path(model_id).is_dir():
            return checkpoint.load(Path(model_id) / WEIGHTS)
        options = {key: given[key] for key in _OPTIONS if key in given}
        folder = snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG], **options)
        return checkpoint.load(Path(folder) / WEIGHTS)


def from_pretrained(name: str | Path, **options: Any) -> Network3d:
    """Load the network in a folder, or in a repository on the hub (`options` are huggingface_hub's).

    Raises `CheckpointError`.
    """
    try:
        found: Any = _Pretrained.from_pretrained(str(name), **options)
    except I3DError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub client raises many kinds of errors when it is offline
        raise CheckpointError(f"{name} is not a folder, and the hub can't provide it: {first_line(error)}") from None
    network: Network3d = found
    return network


def save_pretrained(network: nn.Module, folder: str | Path, finetuned: bool = False, classes: Given = None) -> None:
    """Write `model.safetensors`, configuration, preprocessing and a model card into `folder`; see `save`.

    Raises `CheckpointError`, `ClassesError`, and `ExportError` for a network that was built in memory.
    """
    _Pretrained(network, finetuned, classes).save_pretrained(folder)


def push_to_hub(network: nn.Module, name: str, finetuned: bool = False, classes: Given = None, **options: Any) -> str:
    """Upload what `save_pretrained` writes to the hub's repository `name`; returns its URL."""
    address: str = _Pretrained(network, finetuned, classes).push_to_hub(name, **options)
    return address
