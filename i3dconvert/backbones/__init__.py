"""Build a 2D network from a name and weights, and record where it came from.

Imports `lift`, and the rooms below it.
"""

from i3dconvert.backbones.changes import Changes
from i3dconvert.backbones.origin import Backbone, Origin, Weights, build, library
from i3dconvert.backbones.source import Source
from i3dconvert.names import names, parse, qualified_names

__all__ = ["Backbone", "Changes", "Origin", "Source", "Weights", "build", "library"]
__all__ += ["names", "parse", "qualified_names"]
