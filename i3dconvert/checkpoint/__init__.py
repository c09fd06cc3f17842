"""The checkpoint: safetensors under the 2D network's own keys, and a JSON document that records its origin.

Imports `frameworks`, `backbones`, `lift`, and the rooms below them.
"""

from i3dconvert.checkpoint.document import KEY, SCHEMA, Document
from i3dconvert.checkpoint.naming import named, settle
from i3dconvert.checkpoint.present import class_names, document_of, name_classes, network_in
from i3dconvert.checkpoint.reading import PICKLED, filled, finetuned, load, read, rebuild
from i3dconvert.checkpoint.trained import Trained, sentence
from i3dconvert.checkpoint.writing import Entry, entries_in, save, write

__all__ = ["KEY", "PICKLED", "SCHEMA", "Document", "Entry", "Trained"]
__all__ += [
    "class_names",
    "document_of",
    "entries_in",
    "filled",
    "finetuned",
    "load",
    "name_classes",
    "named",
    "network_in",
    "read",
]
__all__ += ["rebuild", "save", "sentence", "settle", "write"]
