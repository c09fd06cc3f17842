"""Write a folder for the Hugging Face hub, which others load with or without i3dconvert."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from i3dconvert import checkpoint
from i3dconvert.backbones import Origin
from i3dconvert.checkpoint import Document, document_of, network_in
from i3dconvert.errors import ExportError, VerificationError, WeightsError
from i3dconvert.export import Exported, export_onnx
from i3dconvert.export.placing import clear_data
from i3dconvert.files import WEIGHTS, replacing_in
from i3dconvert.lift.network import Network3d, gives_scores, origin_of
from i3dconvert.names import HF, USER
from i3dconvert.progress import Progress, silent
from i3dconvert.reporting.templates import render
from i3dconvert.streaming.onnx import ExportOptions, export_stream
from i3dconvert.streaming.runtime import STREAM
from i3dconvert.verification import FRAMES, Report, verify
from i3dconvert.version import VERSION

CARD, CONFIG, PREPROCESSOR, GRAPH = "README.md", "config.json", "preprocessor_config.json", "model.onnx"


@dataclass(frozen=True)
class Folder:
    """The folder that was written."""

    path: Path
    files: tuple[Path, ...]
    report: Report | None
    unproved: str
    """The reason if there is no report."""
    exported: Exported


def write_folder(
    network: Network3d,
    path: str | Path,
    *,
    finetuned: bool = False,
    force: bool = False,
    stream: bool = False,
    window: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Folder:
    """Verify a network, export it, and write both with a model card.

    `options` are those of `export_onnx`, or with `stream` those of `export_stream`, as `window` is. A network that
    can't be verified (fine-tuned, or without its 2D weights) is written, and its card says so.

    Raises `ExportError` for a network that differs from its 2D one, and what the export raises; `path` is then
    unchanged.
    """
    path, network = Path(path), network_in(network)
    named_origin(network)
    document = document_of(network, finetuned=finetuned)
    with replacing_in(path, force) as work:
        report, unproved = _proof(network, document, progress)
        if report is not None and not report.passed:
            raise ExportError(f"the network is not equal to its 2D network, and was not written: {report.reason}")
        if stream:
            live = ExportOptions(finetuned=finetuned, **options)
            exported = export_stream(network, work / GRAPH, window, live, progress)
        else:
            exported = export_onnx(network, work / GRAPH, finetuned=finetuned, progress=progress, **options)
        sha256 = checkpoint.save(network, work / WEIGHTS, finetuned=finetuned)
        describe_in(work, network, replace(document, sha256=sha256), report, unproved, exported)
        files = tuple(path / file.name for file in sorted(work.iterdir()))
    parts = tuple(path / file.name for file in exported.files)
    clear_data(path / GRAPH, parts)
    return Folder(path, files, report, unproved, replace(exported, path=path / GRAPH, files=parts))


def named_origin(network: Network3d) -> Origin:
    """Return the origin of a network; raises `ExportError` if nobody else could build it."""
    origin: Origin | None = origin_of(network)
    if origin is None:
        raise ExportError("a network made from a module in memory can't be built by others; save its state dict")
    return origin


def _proof(network: Network3d, document: Document, progress: Progress) -> tuple[Report | None, str]:
    if document.finetuned:
        return None, finetuned_by(document)
    progress("reading the 2D network")
    try:
        return verify(named_origin(network).load(), network, progress=progress), ""
    except (WeightsError, VerificationError) as error:
        return None, str(error)


def finetuned_by(document: Document) -> str:
    """Return why a trained network is not compared with a 2D one."""
    moved = f" ({document.trained})" if document.trained is not None else ""
    return f"its weights were fine-tuned{moved}, so it equals no 2D network"


def describe_in(
    folder: Path,
    network: Network3d,
    document: Document,
    report: Report | None,
    unproved: str,
    exported: Exported | None,
) -> None:
    """Write the files beside the weights: configuration, preprocessing, card."""
    origin = document.origin
    assert origin is not None
    config = _config(document, origin, exported, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    processor = origin.preprocessing.to_processor()
    (folder / PREPROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    is_classifier = document.gives_classes and gives_scores(network)
    tag = {"pipeline_tag": "video-classification"} if is_classifier else {}
    card = _card(document, origin, config, tag, report, unproved, exported)
    (folder / CARD).write_text(card, encoding="utf-8")


def _config(document: Document, origin: Origin, exported: Exported | None, folder: Path) -> dict[str, Any]:
    names = document.class_names or [f"class {index}" for index in range(origin.classes)]
    config: dict[str, Any] = {
        "library_name": "i3dconvert",
        "architectures": ["Network3d"],
        "architecture": origin.backbone.qualified,
        "num_classes": origin.classes,
        "num_channels": origin.input[0],
        "image_size": origin.input[1],
        "num_frames": max(FRAMES, document.inflation.minimum_frames),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "i3dconvert": json.loads(document.dumps(folder)),
    }
    if exported is not None:
        config["onnx"] = {"file": exported.path.name, "input": exported.input, "shape": list(exported.shape)}
        if exported.stream:
            config["onnx"][STREAM] = json.loads(exported.stream)
    return config


def _card(
    document: Document,
    origin: Origin,
    config: Mapping[str, Any],
    tag: Mapping[str, str],
    report: Report | None,
    unproved: str,
    exported: Exported | None,
) -> str:
    licence = origin.licence()
    tags = ["i3dconvert", "video", "3d", "inflated", *["onnx"] * (exported is not None)]
    head: dict[str, Any] = {"library_name": "i3dconvert", "tags": tags, **tag}
    sources = {"license": licence, "base_model": base_model(origin)}
    head |= {key: value for key, value in sources.items() if value}
    shape = [origin.input[0], config["num_frames"], *origin.input[1:]]
    return render(
        "card.md",
        head={key: json.dumps(value) for key, value in head.items()},
        document=document,
        origin=origin,
        report=report,
        unproved=unproved,
        exported=exported,
        licence=licence,
        shape=shape,
        example=_example(exported, shape, config["onnx"].get(STREAM)) if exported is not None else None,
        needs_file=origin.backbone.name if origin.backbone.source == USER else "",
        version=VERSION,
        torch=torch.__version__.partition("+")[0],
    )


def base_model(origin: Origin) -> str:
    """Return the hub repository of the 2D weights; empty if there is none."""
    if origin.weights.kind != "pretrained":
        return ""
    if origin.backbone.source == HF:
        return "" if origin.backbone.of_files else origin.backbone.name
    name = str(origin.weights.name)
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    return f"timm/{origin.backbone.name}.{name}" if origin.backbone.source == "timm" else ""


def _example(exported: Exported, shape: list[Any], stream: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the shape and the numpy dtype of a clip of zeros for the graph, and whether it has a state."""
    channels, frames, height, width = shape
    frames, live = (frames, False) if stream is None else (stream["frames"], True)
    if exported.input == "frames":
        return {"shape": (1, frames, height, width, channels), "dtype": "uint8", "live": live}
    half = exported.precision == "float16"
    return {"shape": (1, channels, frames, height, width), "dtype": "float16" if half else "float32", "live": live}
