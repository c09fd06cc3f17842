"""Read from the libraries what `catalogue` stores about their backbones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from i3dconvert.backbones.origin import Backbone, build, library
from i3dconvert.catalogue import Entry, Table
from i3dconvert.errors import I3DError
from i3dconvert.names import names
from i3dconvert.progress import Progress, silent


def taken(source: str) -> Table:
    """Return every backbone of the library, with its number of parameters if the library gives one."""
    found = library(source)
    return {name: Entry(found.parameters(name), tuple(found.offered(name))) for name in names(source)}


def counted(source: str, table: Table, some: Sequence[str], progress: Progress = silent) -> Table:
    """Return the table with the parameters of some backbones counted, which takes 0.1 s for each."""
    found = {}
    for done, name in enumerate(some):
        progress(f"counting {name}", done / len(some))
        found[name] = table[name]._replace(parameters=_count(source, name))
    return {**table, **found}


def _count(source: str, name: str) -> int | None:
    """Return the number of parameters; None if the backbone can't be built without allocating them."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build(Backbone.of(source, name)).parameters())
    except (I3DError, RuntimeError):
        return None
