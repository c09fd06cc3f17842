"""Write the forms that a runtime loads; each is checked against torch before it replaces a file.

Imports `checkpoint`, `backbones`, `lift`, and the rooms below them.
"""

from i3dconvert.export.onnx import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
