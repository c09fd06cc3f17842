"""The values of options that Python and the command line share."""

from typing import Literal

Init = Literal["center", "mean"]
Padding = Literal["zeros", "replicate"]
Conv = Literal["3d", "2plus1d"]
InInit = Literal["sum", "mean", "repeat"]
Head = Literal["", "none", "maps"]
TemporalPool = Literal["mean", "none"]
TimeEmbedding = Literal["none", "zeros", "sinusoidal-learned"]
