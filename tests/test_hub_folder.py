"""A folder as the Hugging Face hub has them: what is in it, who loads it, and what is never written."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
import yaml

import i3dconvert
from i3dconvert.backbones import Origin, Weights, parse
from i3dconvert.comparison.report import Check
from i3dconvert.errors import CheckpointError, ExportError, OutputError
from i3dconvert.export import Exported
from i3dconvert.files import replacing_in
from i3dconvert.hub.folder import base_model, write_folder
from i3dconvert.lift.network import Network3d
from i3dconvert.lift.seals import sealed
from i3dconvert.verification import verify_file
from i3dconvert.video.preprocessing import Preprocessing
from tests.conftest import Run

NETWORK = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in a folder."""
    path = tmp_path_factory.mktemp("hub") / "net"
    write_folder(i3dconvert.inflate(NETWORK, weights="random"), path, uint8_input=True, top_k=3)
    return path


@pytest.mark.slow
def test_others_load_it_as_its_card_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["pipeline_tag"] == "video-classification"
    assert "license" not in head  # random weights have none
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL):
        exec(compile(block, "README.md", "exec"), found)
    network, state, results = found["network"], found["state"], found["results"]
    assert isinstance(network, i3dconvert.Network3d)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in state.items())  # type: ignore[attr-defined]
    assert [result.shape for result in results] == [(1, 3), (1, 3)]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_stream_runs_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = i3dconvert.inflate("timm/test_resnet", "uniform", "mean", weights="random", size=32)
    write_folder(network, tmp_path / "net", stream=True)
    monkeypatch.chdir(tmp_path / "net")
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", Path("README.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, "README.md", "exec"), found)
    scores, *state = found["results"]
    assert scores.shape == (1, 1000)
    assert [kept.shape[1:] for kept in state] == [tuple(one["shape"]) for one in found["stream"]["state"]]


@pytest.mark.slow
def test_the_configuration_and_the_proof(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    shape = onnxruntime.InferenceSession(folder / "model.onnx").get_inputs()[0]
    assert (config["onnx"]["input"], config["onnx"]["shape"]) == (shape.name, shape.shape)
    assert len(config["id2label"]) == 1000
    assert config["id2label"]["281"] == "tabby"
    report = verify_file(folder, i3dconvert.verification.Settings(frames=2, size=64))
    assert report.passed, report.reason
    errors = re.findall(r"\| forward equality, float64.*\| (\S+) \| 1e-12 \|", (folder / "README.md").read_text())
    assert len(errors) == 1
    assert re.search(r"\| convolutions \| (\d+) of \1 convolutions became 3D \|", (folder / "README.md").read_text())
    assert 0 < float(errors[0]) <= 1e-12


@pytest.mark.slow
def test_transformers_reads_the_preprocessing(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    network = i3dconvert.load(folder)
    given = network.meta["origin"].preprocessing
    frames = torch.randint(0, 256, (1, 3, given.size, given.size), dtype=torch.uint8)
    expected = given.encode(frames.movedim(1, -1).unsqueeze(0))
    assert list(processor.image_mean) == list(given.mean)
    assert processor.crop_size["height"] == given.size
    found = processor([frames], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-5)


def test_what_an_earlier_folder_has_beside_its_graph_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = tmp_path / "net" / "model.onnx", f"model.onnx.{'0' * 12}.data"
    check = Check("onnxruntime against torch", True)

    def export(network: Network3d, path: Path, **_: Any) -> Exported:
        path.write_text("graph")
        path.with_name(f"model.onnx.{'1' * 12}.data").write_text("new")
        files = (path.with_name(f"model.onnx.{'1' * 12}.data"), path)
        return Exported(path, files, "clip", (1, 3, 16, 32, 32), 20, (1, 3, 16, 32, 32), check)

    monkeypatch.setattr("i3dconvert.hub.folder.export_onnx", export)
    graph.parent.mkdir()
    for name in (data, "mine.data"):
        (graph.parent / name).write_text("old")
    network = i3dconvert.inflate("resnet18", weights="random", size=32)
    write_folder(network, graph.parent, finetuned=True, force=True)
    assert sorted(file.name for file in graph.parent.glob("*.data")) == ["mine.data", f"model.onnx.{'1' * 12}.data"]


def test_a_device_in_a_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")

    def write() -> None:
        with replacing_in(tmp_path, force=True) as work:
            (work / "README.md").write_text("card")
            (work / "config.json").write_text("{}")

    with pytest.raises(OutputError, match=r"README\.md is a device or a pipe"):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.slow
def test_what_is_not_equal_is_not_written(tmp_path: Path) -> None:
    network = i3dconvert.inflate(NETWORK, weights="random")
    with torch.no_grad():
        network.get_parameter("conv5.0.weight").mul_(1.01)
    network._i3d_seals = sealed(network.state_dict())  # as if it had been inflated so
    with pytest.raises(ExportError, match=r"not equal to its 2D network.*conv5\.0\.weight"):
        write_folder(network, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command_writes_tuned_weights_and_says_that_nothing_is_proved(run: Run) -> None:
    assert run("inflate", NETWORK, "-w", "random", "-o", "net.safetensors").code == 0
    torch.save(i3dconvert.inflate(NETWORK, weights="random", seed=1).state_dict(), "tuned.pth")
    result = run("export", "net.safetensors", "--hub", "out", "-w", "tuned.pth")
    assert result.code == 0, result.err
    assert "not proved: its weights were fine-tuned" in result.out
    assert "Not proved" in Path("out/README.md").read_text()
    again = run("export", "net.safetensors", "--hub", "out")
    assert again.code == 1
    assert "--force" in again.err
    assert run("export", "net.safetensors", "--hub", "other", "--onnx").code == 2


@pytest.mark.parametrize(
    ("name", "weights", "repository", "licence"),
    [
        ("timm/resnet50", "a1_in1k", "timm/resnet50.a1_in1k", "apache-2.0"),
        ("resnet50", "IMAGENET1K_V2", "", "bsd-3-clause"),
        ("vit_l_16", "IMAGENET1K_SWAG_LINEAR_V1", "", "cc-by-nc-4.0"),
        ("timm/convnextv2_atto", "fcmae_ft_in1k", "timm/convnextv2_atto.fcmae_ft_in1k", "cc-by-nc-4.0"),
    ],
)
def test_the_source_and_its_licence(name: str, weights: str, repository: str, licence: str) -> None:
    source, bare = parse(name)
    backbone = i3dconvert.backbones.Backbone(source, bare)
    origin = Origin(backbone, Weights("pretrained", weights), Preprocessing(), (3, 1, 1), 0)
    if source == "timm" and timm.models.get_pretrained_cfg(f"{bare}.{weights}").license is None:
        pytest.skip("this timm does not know the licence")
    assert (base_model(origin), origin.licence()) == (repository, licence)


@pytest.mark.slow
def test_from_pretrained_and_save_pretrained(folder: Path, tmp_path: Path) -> None:
    network = i3dconvert.from_pretrained(folder)
    network.save_pretrained(tmp_path / "copy")
    assert sorted(file.name for file in (tmp_path / "copy").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    again = i3dconvert.Network3d.from_pretrained(tmp_path / "copy")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="not a folder"):
        i3dconvert.from_pretrained("nobody/nothing", local_files_only=True)


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    commits: list[bytes]

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://localhost:{self.server.server_address[1]}/ORG/NAME"
        if "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            answer: dict[str, object] = {
                "files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
            }
        elif "/commit/" in self.path:
            self.commits.append(body)
            answer = {"commitUrl": f"{url}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
        else:
            answer = {"url": url, "name": "ORG/NAME", "valid": True}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.mark.slow
def test_push_to_hub_uploads_the_folder(folder: Path, tmp_path: Path) -> None:
    handler = type("Handler", (_Hub,), {"commits": []})
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = "import sys; from i3dconvert import load, push_to_hub; "
        script += "print(push_to_hub(load(sys.argv[1]), 'ORG/NAME', token='hf_none'))"
        address = f"http://localhost:{server.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", script, folder],
            env={"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    (commit,) = handler.commits  # type: ignore[attr-defined]
    lines = [json.loads(line)["value"] for line in commit.splitlines()]
    files = {line["path"]: base64.b64decode(line["content"]) for line in lines if "path" in line}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= files.keys()
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    assert i3dconvert.load(tmp_path).state_dict().keys() == i3dconvert.load(folder).state_dict().keys()


def test_a_card_calls_classifiers_alone_so(tmp_path: Path) -> None:
    for name, calls in (("resnet18", True), ("lraspp_mobilenet_v3_large", False)):
        i3dconvert.save_pretrained(i3dconvert.inflate(name, weights="random", size=64), tmp_path / name)
        assert ("video-classification" in (tmp_path / name / "README.md").read_text()) is calls
