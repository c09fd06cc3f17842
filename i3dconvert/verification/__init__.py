"""The proof: weight identity, forward equality, and each layer's error.

Imports `streaming`, `export`, `checkpoint`, `lift`, and the rooms below them.
"""

from i3dconvert.comparison.report import Check, LayerError, Picture, Report
from i3dconvert.verification.file import verify_file
from i3dconvert.verification.proof import verify
from i3dconvert.verification.settings import FRAMES, TOLERANCES, Settings

__all__ = ["FRAMES", "TOLERANCES", "Check", "LayerError", "Picture", "Report", "Settings", "verify", "verify_file"]
