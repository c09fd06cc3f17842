"""The forms that a runtime loads, each checked against torch before it is put in place."""

from i3dconvert.export.onnx import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
