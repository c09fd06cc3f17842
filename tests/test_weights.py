"""Pretrained weights through the libraries' own loading code: from torch.hub's cache, and from a server."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from i3dconvert import backbones, inflate, verify
from i3dconvert.backbones import Source
from i3dconvert.errors import WeightsError
from i3dconvert.verification import Settings
from i3dconvert.weights import NoInit, digest, one_thread
from tests.conftest import Run

WEIGHTS = models.ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def test_default_weights_come_from_the_cache(hub: Path, weight_file: Path, run: Run) -> None:
    weight_file.rename(hub / WEIGHTS.url.rpartition("/")[2])
    result = run("inflate", "resnet18")
    assert result.code == 0, result.err
    assert "weights IMAGENET1K_V1" in result.out
    assert run("verify", "-f", "2", "--size", "64").code == 0
    assert run("inflate", "resnet18", "-w", "IMAGENET1K_V1", "-o", "named.safetensors").code == 0


def test_weights_are_downloaded_and_their_hash_is_checked(
    hub: Path, weight_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = weight_file.read_bytes()
    served = tmp_path / "served"
    served.mkdir()
    good = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (served / good).write_bytes(content)
    (served / "resnet18-00000000.pth").write_bytes(content)
    with serving(served) as address:
        monkeypatch.setattr(type(WEIGHTS), "url", property(lambda _: f"{address}/{good}"))
        model, origin = Source("resnet18").load()
        assert (hub / good).read_bytes() == content
        assert origin.weights.sha256 == digest(torch.load(weight_file))
        assert not model.training
        monkeypatch.setattr(type(WEIGHTS), "url", property(lambda _: f"{address}/resnet18-00000000.pth"))
        with pytest.raises(WeightsError, match="invalid hash value"):
            Source("resnet18").load()
        monkeypatch.setattr(type(WEIGHTS), "url", property(lambda _: f"{address}/none-00000000.pth"))
        with pytest.raises(WeightsError, match="use -w PATH for a local file"):
            Source("resnet18").load()


def test_without_a_network_the_way_out_is_told(hub: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(WEIGHTS), "url", property(lambda _: "http://127.0.0.1:9/resnet18-00000000.pth"))
    result = run("inflate", "resnet18")
    assert result.code == 1
    assert "use -w PATH for a local file or -w random for random weights" in result.err


def test_timm_weights_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run("inflate", "timm/resnet18")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "can't get timm's weights a1_in1k" in result.err


def test_old_files_with_other_keys_and_auxiliary_heads() -> None:
    known = backbones.library("torchvision")
    names = known.canonical(
        "densenet121", {}, {"features.denseblock1.denselayer1.norm.1.weight": torch.zeros(1)}, nn.Identity()
    )
    assert list(names) == ["features.denseblock1.denselayer1.norm1.weight"]
    assert known.canonical("googlenet", {}, {"aux1.fc.bias": torch.zeros(1)}, nn.Identity()) == {}
    assert known.arguments("googlenet", "IMAGENET1K_V1", None)["transform_input"] is True


def test_googlenet_transforms_its_input_as_torchvision_does() -> None:
    model = models.googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=True).eval()
    settings = Settings(frames=4, size=64)
    assert verify(model, inflate(model, "i3d"), settings).passed
    assert backbones.library("torchvision").recognise("googlenet", "googlenet-1378be20.pth") == "IMAGENET1K_V1"


def test_random_weights_are_the_seed_s_own_and_of_order_one() -> None:
    first, _ = Source("resnet18", "random", seed=1, size=64).load()
    again, _ = Source("resnet18", "random", seed=1, size=64).load()
    other, _ = Source("resnet18", "random", seed=2, size=64).load()
    assert digest(first.state_dict()) == digest(again.state_dict()) != digest(other.state_dict())
    with torch.no_grad():
        logits = first(torch.randn(2, 3, 64, 64))
    assert 0.1 < logits.std() < 10
    assert all(parameter.abs().max() > 0 for parameter in first.parameters())


def test_building_without_initialisation_still_sets_the_buffers() -> None:
    with NoInit():
        model = models.swin_t(weights=None)
    expected = models.swin_t(weights=None)
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))


def test_passes_in_two_threads_leave_the_number_of_threads_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    first, second = one_thread(), one_thread()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread, step in ((one, first.__enter__), (other, second.__enter__)):
            thread.submit(step).result()
        for thread, end in ((one, first.__exit__), (other, second.__exit__)):
            thread.submit(end, None, None, None).result()
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 3
    torch.set_num_threads(before)
