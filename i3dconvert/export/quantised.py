"""Quantise weights and activations to eight bits with onnxruntime's static quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.nn import functional

from i3dconvert.errors import ExportError, first_line
from i3dconvert.export.runtime import Runtime, quietly

OPERATORS = ("Conv", "Gemm", "MatMul")
"""The operators with nearly all of the work; the others stay in float32."""


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def quantise(path: Path, feeds: Iterable[dict[str, Any]]) -> Path:
    """Write the float32 network at `path` with 8-bit convolutions and linear layers to a file beside it.

    `feeds`, inputs by name, calibrate the ranges of activations. Raises `ExportError`.
    """
    prepared, written = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    try:
        with quietly():
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                written,
                _Feeds(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:
        raise ExportError(f"onnxruntime can't quantise this network: {first_line(error)}") from error
    finally:
        prepared.unlink(missing_ok=True)
    return written


def agreement(exact: Runtime, quantised: Runtime, clips: Tensor) -> float:
    """Return the share of clips, or of positions in dense networks, on which both have the same top class."""
    same = [_top_class(quantised, clip) == _top_class(exact, clip) for clip in clips.unsqueeze(1)]
    return float(torch.cat(same).float().mean())


def likeness(exact: Runtime, quantised: Runtime, clips: Tensor) -> float:
    """Return the mean cosine similarity of both outputs for a clip, for features, whose maximum means nothing."""
    pairs = [(exact(clip)[0].flatten(1), quantised(clip)[0].flatten(1)) for clip in clips.unsqueeze(1)]
    return float(torch.cat([functional.cosine_similarity(*pair) for pair in pairs]).mean())


def _top_class(runtime: Runtime, clip: Tensor) -> Tensor:
    out = runtime(clip)
    return out[1][:, 0] if runtime.names_best else out[0].argmax(1)
