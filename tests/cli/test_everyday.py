"""What people type every day: folders, suffixes, typos, errors for scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i3dconvert.classification import Classifier, Moment, classify_folder, mean_of
from i3dconvert.cli.bench import USUAL_OF_FILES
from i3dconvert.errors import FramesError, OutputError, RecipeError
from i3dconvert.lift.lengths import checked
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.recipes import Recipe, Rule
from i3dconvert.reporting.benchmark import Case, Measurement
from i3dconvert.video.preprocessing import Preprocessing
from tests.conftest import Run


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (("inflate", "resnet8"), 1, "no backbone 'resnet8'", "did you mean resnet18"),
        (("inflate", "resnet18", "--init", "centre"), 2, "'centre' is not one of", "did you mean center?"),
        (("inflate", "resnet18", "--layout", "slowfst"), 1, "unknown layout 'slowfst'", "did you mean slowfast?"),
        (("inflate", "resnet18", "-r", "unform"), 1, "unknown preset 'unform'", "did you mean uniform?"),
        (("inflate", "resnet18", "-s", "1"), 2, "--size", ""),
        (("verify", "none.safetensors"), 1, "there is no file", ""),
        (("bench", "x", "--runtime", "onx"), 2, "unknown runtime 'onx'", "did you mean onnx?"),
        (("classify", "x"), 2, "give videos and pictures", ""),
    ],
)
def test_errors_are_for_people_and_for_scripts(
    words: tuple[str, ...], code: int, error: str, hint: str, run: Run
) -> None:
    told = run(*words, "--json")
    document = json.loads(told.out)
    assert document.keys() == {"error", "hint"}
    assert (told.code, told.err) == (code, "")
    assert error in document["error"]
    assert document["hint"].startswith(hint)
    said = run(*words)
    assert (said.code, said.out) == (code, "")
    assert error in said.err.replace("\n", " ")
    assert len(said.err.splitlines()) <= 3


def test_layers_of_like_names_are_offered() -> None:
    recipe = Recipe("r", (Rule("layr1.*", kernel=3),))
    with pytest.raises(RecipeError, match="did you mean layer1"):
        recipe.check_matches([("layer1.0.conv1", "spatial")], [])


def seen(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0.7, 0.3]), torch.tensor([0, 1])


CLASSIFIER = Classifier(seen, Preprocessing(8, 8), ("cat", "dog"), frames=2)


def test_a_folder_is_gone_through_and_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    output = tmp_path / "classes.jsonl"
    done = classify_folder(CLASSIFIER, tmp_path, output)
    assert (done.classified, done.failed, done.passed_over) == (2, 1, 0)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["source"] for line in lines] == ["a.png", "bad.mp4", "in/b.png"]
    assert lines[0]["best"][0]["class"] == "cat"
    assert "can't read the video" in lines[1]["error"]
    output.write_text(output.read_text() + '{"source": "in/c')  # a run that was stopped
    Image.new("RGB", (9, 9)).save(tmp_path / "in/c.png")
    done = classify_folder(CLASSIFIER, tmp_path, output)
    assert (done.classified, done.failed, done.passed_over) == (1, 1, 2)
    assert [json.loads(line)["source"] for line in output.read_text().splitlines()].count("bad.mp4") == 1
    for foreign in (b"something else\n", b"something else", b"one\ntwo", b"\xff\xd8"):
        output.write_bytes(foreign)
        with pytest.raises(OutputError, match="is not from an earlier run"):
            classify_folder(CLASSIFIER, tmp_path, output)
        assert output.read_bytes() == foreign
    with pytest.raises(OutputError, match="is a device"):
        classify_folder(CLASSIFIER, tmp_path, Path(os.devnull))
    assert classify_folder(CLASSIFIER, tmp_path, output, force=True).classified == 3


def test_all_classes_count_in_the_mean() -> None:
    every: Any = [(("cat", 0.4), ("dog", 0.35), ("owl", 0.25)), (("owl", 0.4), ("dog", 0.35), ("cat", 0.25))]
    moments = [Moment(0, 1, scores[:1], scores) for scores in every]
    assert mean_of(moments, 3) == [("dog", 0.35), ("cat", 0.325), ("owl", 0.325)]


def test_no_rate_is_infinite() -> None:
    measured = Measurement(Case("x", "onnx"), 0.0, 0.0, 0, 0.0)
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False))["frames_per_second"] > 0
    assert USUAL_OF_FILES == ("onnx",)


def test_frames_that_go_through_are_named() -> None:
    import i3dconvert

    network = i3dconvert.inflate(_two_ways(), _strided(), size=32)
    assert checked(graph_of(network), 4)
    with pytest.raises(FramesError, match="a clip of 5 frames does not fit, one of 4 or 6 does"):
        network.frames_left(5)


def _two_ways() -> torch.nn.Module:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Conv2d(3, 4, 2, 2)
            self.pool = torch.nn.MaxPool2d(3, 2, 1)
            self.other = torch.nn.Conv2d(3, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.one(image) + self.other(self.pool(image))
            return result

    return Two()


def _strided() -> Any:
    return Recipe("r", (Rule("one", kernel=2, stride=2, padding=0), Rule("pool", kernel=3, stride=2)))


@pytest.mark.slow
def test_the_constructor_of_a_layout_runs_as_pasted(run: Run) -> None:
    made = "inflate resnet18 -w random -s 64 --num-classes 7 --layout torchvision-video -q -o a.pth"
    assert run(*made.split()).code == 0
    said = run(*"export a.pth --safetensors --layout torchvision-video -o b.pth".split())
    pasted = [line for line in said.out.splitlines() if line.startswith(("import ", "network = "))]
    names: dict[str, Any] = {}
    exec("\n".join(pasted), names)
    names["network"].load_state_dict(torch.load("b.pth"))
    assert names["network"].fc.out_features == 7
