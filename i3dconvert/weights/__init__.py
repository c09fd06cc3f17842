"""State dicts: read from files without running code, assigned to networks, drawn at random, hashed.

Imports `files` and `errors`.
"""

from i3dconvert.weights.drawing import randomise
from i3dconvert.weights.fitting import NoInit, classes_in, fit, inspect, shapes_of
from i3dconvert.weights.hashing import Digest, Stream, digest, one_thread, raw
from i3dconvert.weights.reading import (
    SUFFIXES,
    State,
    check_bounds,
    nested,
    read_pickle,
    read_safetensors,
    read_state,
    tensors_in,
)

__all__ = ["SUFFIXES", "Digest", "NoInit", "State", "Stream", "check_bounds", "classes_in", "digest", "fit", "inspect"]
__all__ += ["nested", "one_thread", "randomise", "raw", "read_pickle", "read_safetensors", "read_state", "shapes_of"]
__all__ += ["tensors_in"]
