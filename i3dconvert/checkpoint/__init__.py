"""The checkpoint: safetensors, the 2D network's own key names, and one JSON document that says all about its origin."""

from i3dconvert.checkpoint.document import KEY, SCHEMA, Document
from i3dconvert.checkpoint.reading import PICKLED, filled, finetuned, load, read, rebuild
from i3dconvert.checkpoint.writing import Entry, entries_in, save, write

__all__ = ["KEY", "PICKLED", "SCHEMA", "Document", "Entry"]
__all__ += ["entries_in", "filled", "finetuned", "load", "read", "rebuild", "save", "write"]
