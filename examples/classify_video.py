"""Classify a video with an exported ONNX file, using only onnxruntime, PyAV and the file's metadata.

    i3dconvert inflate resnet50 && i3dconvert export --onnx
    python examples/classify_video.py resnet50-i3d.onnx VIDEO

Files exported with --uint8-input and --top-k also work.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnx
import onnxruntime
from PIL import Image

FRAMES = 16


class OnnxClassifier:
    """An exported file: its metadata has the preprocessing and the class names."""

    def __init__(self, path: Path) -> None:
        metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        self.preprocessing = json.loads(metadata["i3dconvert"])["origin"]["preprocessing"]
        self.classes: list[str] = json.loads(metadata["classes"])
        self.session = onnxruntime.InferenceSession(path)
        self.input = self.session.get_inputs()[0].name

    def crop(self, image: Image.Image) -> np.ndarray:
        """Resize the short side and crop the center: returns `(H, W, 3)` in uint8."""
        image, given = image.convert("RGB"), self.preprocessing
        size, scale = given["size"], given["resize"] / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        resized = image.resize((width, height), Image.Resampling[given["interpolation"].upper()])
        left, top = round((width - size) / 2), round((height - size) / 2)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def best(self, images: list[Image.Image], count: int = 5) -> list[tuple[str, float]]:
        """Return the best classes of a clip's frames, with their probabilities."""
        frames = np.stack([self.crop(image) for image in images])[np.newaxis]
        if self.input == "clip":
            given = self.preprocessing
            normalised = (frames.astype(np.float32) / 255 - np.float32(given["mean"])) / np.float32(given["std"])
            frames = np.transpose(normalised, (0, 4, 1, 2, 3))
        outputs = self.session.run(None, {self.input: frames})
        if len(outputs) == 2:
            best, indices = (output[0] for output in outputs)
            return [(self.classes[index], float(score)) for index, score in zip(indices, best, strict=True)]
        scores = np.exp(outputs[0][0] - outputs[0][0].max())
        scores /= scores.sum()
        return [(self.classes[index], float(scores[index])) for index in np.argsort(-scores)[:count]]


def read_frames(video: Path, count: int) -> list[Image.Image]:
    """Return `count` frames, evenly spread over the video."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[round(index)] for index in np.linspace(0, len(frames) - 1, count)]


def show(name: str, best: list[tuple[str, float]]) -> None:
    print(f"{name}: " + ", ".join(f"{label} {score:.2f}" for label, score in best), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/classify_video.py NETWORK.onnx VIDEO")
    network, video = OnnxClassifier(Path(sys.argv[1])), Path(sys.argv[2])
    show(video.name, network.best(read_frames(video, FRAMES)))
