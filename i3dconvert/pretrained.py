"""`from_pretrained`, `save_pretrained` and `push_to_hub`, by huggingface_hub's own mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from i3dconvert import checkpoint
from i3dconvert.checkpoint import Document
from i3dconvert.errors import CheckpointError, I3DError, first_line
from i3dconvert.files import WEIGHTS
from i3dconvert.hub import CONFIG, describe_in, named_origin
from i3dconvert.lift.network import Network3d, inflation_of

_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


class Pretrained(ModelHubMixin):
    """A network as the mixin saves and loads it: the network itself stays what torch.fx makes of it."""

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


def load(name: str, **options: Any) -> Network3d:
    """The network in a folder, or in a repository on the hub; raises `CheckpointError`."""
    try:
        found: Any = Pretrained.from_pretrained(name, **options)
    except I3DError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub client has its own errors for every way to be offline
        raise CheckpointError(f"{name} is no folder, and is not to be had from the hub: {first_line(error)}") from None
    network: Network3d = found
    return network
