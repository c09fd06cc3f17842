"""The page: what it says, that it needs nothing else, and that nothing in a file is taken for HTML."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

import i3dconvert
from i3dconvert import export_onnx
from i3dconvert.backbones import Source
from i3dconvert.errors import BenchmarkError
from i3dconvert.inflation import inflate_to_file
from i3dconvert.lift.describe import energy_by_tap
from i3dconvert.reporting import charts
from i3dconvert.reporting.benchmark import Case, Measurement
from i3dconvert.reporting.page import page, stages
from i3dconvert.reporting.subject import Subject, stage_of, subject_of
from i3dconvert.verification import Check, LayerError, Picture, Report, Settings, verify_file
from tests.browser import chromium, console, needs_chromium
from tests.conftest import Run

HOSTILE = '<script>document.title="taken"</script>'
SETTINGS = Settings(frames=2, size=64, layers=True, gflop=0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """One for all pages."""
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small verified network."""
    path = tmp_path_factory.mktemp("report") / "net.safetensors"
    inflate_to_file(Source("shufflenet_v2_x0_5", weights="random"), path)
    return subject_of(path, verify_file(path, SETTINGS))


def opened(driver: Chrome, path: Path, text: str, scheme: str = "light") -> str:
    """The page as a user sees it: its text, once it is shown."""
    path.write_text(text, encoding="utf-8")
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(path.as_uri())
    return str(driver.find_element(By.TAG_NAME, "body").text)


@pytest.mark.slow
@needs_chromium
def test_opens_from_disk_with_its_verdict_and_without_a_word_on_the_console(
    browser: Chrome, subject: Subject, tmp_path: Path
) -> None:
    text = page([subject])
    seen = opened(browser, tmp_path / "report.html", text)
    assert seen.startswith("✓\nnet.safetensors equals its 2D network")
    assert subject.document.sha256 in seen
    assert subject.document.origin is not None
    assert subject.document.origin.weights.sha256 in seen
    assert console(browser) == []
    assert len(text) < 3_000_000
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    grounds = set()
    for scheme in ("light", "dark"):
        opened(browser, tmp_path / "report.html", text, scheme)
        body = browser.find_element(By.TAG_NAME, "body")
        label = browser.find_element(By.CSS_SELECTOR, "figure svg text")
        ground, ink = body.value_of_css_property("background-color"), label.value_of_css_property("fill")
        assert brightness(ground) > 200 > 100 > brightness(ink) or brightness(ground) < 50 < 150 < brightness(ink)
        grounds.add(ground)
    assert len(grounds) == 2


@pytest.mark.slow
@needs_chromium
def test_charts_fit_on_a_phone_and_are_whole_on_paper(browser: Chrome, subject: Subject, tmp_path: Path) -> None:
    measured = [Measurement(Case("resnet50", name), 0.1, 0.01, 1, 1.0) for name in ("eager", "onnx")]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        opened(browser, tmp_path / "report.html", page([subject], measured))
        shown = [svg for svg in browser.find_elements(By.CSS_SELECTOR, "figure svg") if svg.is_displayed()]
        assert len(shown) == len(browser.find_elements(By.TAG_NAME, "figure")) == 5
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390  # type: ignore[no-untyped-call]
        sizes = {svg.find_element(By.TAG_NAME, "text").rect["height"] for svg in shown}
        assert min(sizes) > 8  # pixels: it can be read
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        breaks = {one.value_of_css_property("break-inside") for one in browser.find_elements(By.TAG_NAME, "figure")}
        assert breaks == {"avoid"}
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_axes_without_data_are_left_out(subject: Subject) -> None:
    assert "moved, %" not in charts.taps(subject)
    moved = [dataclasses.replace(layer, trained=0.5) for layer in subject.layers]
    assert "moved, %" in charts.taps(dataclasses.replace(subject, layers=moved))
    assert "frames left" not in charts.over_depth(dataclasses.replace(subject, left={}))


def brightness(colour: str) -> float:
    channels = [float(value) for value in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


@pytest.mark.slow
@needs_chromium
def test_a_hostile_name_stays_text(browser: Chrome, subject: Subject, tmp_path: Path) -> None:
    assert subject.report is not None
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "cat.png")
    classes = ((HOSTILE, 0.9), ('"><img src=x onerror=alert(1)>', 0.1), ("$\\frac{", 0.0))
    picture = Picture(str(tmp_path / "cat.png"), classes, classes)
    report = dataclasses.replace(
        subject.report,
        pictures=[picture],
        notes=[HOSTILE],
        checks=[*subject.report.checks, Check(HOSTILE, True, HOSTILE, 1e-9, 1e-5)],
        layers=[LayerError(f"{HOSTILE}1", HOSTILE, (1,), 0.0, False)],
    )
    layers = [dataclasses.replace(layer, name=HOSTILE + layer.name, operation=HOSTILE) for layer in subject.layers]
    origin = subject.document.origin
    assert origin is not None
    backbone = dataclasses.replace(origin.backbone, name=HOSTILE, version=HOSTILE)
    document = dataclasses.replace(
        subject.document, layout=HOSTILE, origin=dataclasses.replace(origin, backbone=backbone), sha256=HOSTILE
    )
    hostile = Subject(Path(f"{HOSTILE.replace('/', '')}.onnx"), document, report, "", layers, 16, {}, subject.taps)
    measured = Measurement(Case(HOSTILE, HOSTILE), 0.1, 0.0, 1, 1.0)
    seen = opened(browser, tmp_path / "report.html", page([hostile], [measured]))
    assert browser.title.startswith("<script>")
    assert browser.find_elements(By.TAG_NAME, "script") == []
    assert len(browser.find_elements(By.TAG_NAME, "img")) == 1
    assert seen.count(HOSTILE) > 10
    assert console(browser) == []


@pytest.mark.slow
@needs_chromium
def test_a_failure_comes_first_and_a_missing_proof_is_no_failure(
    browser: Chrome, subject: Subject, tmp_path: Path
) -> None:
    endless = [Check(f"forward equality {error}", False, "", error, 1e-5) for error in (math.inf, math.nan)]
    failed = Report([Check("weight identity", False, "conv5.0.weight differs"), *endless])
    wrong = dataclasses.replace(subject, path=Path("wrong.onnx"), report=failed)
    seen = opened(browser, tmp_path / "report.html", page([subject, wrong]))
    assert seen.startswith("✗\nwrong.onnx is not equal to its 2D network\nWeight identity: conv5.0.weight differs")
    tuned = dataclasses.replace(subject, report=None, unproved="its weights were fine-tuned")
    seen = opened(browser, tmp_path / "report.html", page([tuned]))
    assert seen.startswith("–\nnet.safetensors is not proved to equal a 2D network")
    assert "✓" not in seen


def test_pictures_are_shown_once_with_every_form_s_classes(subject: Subject, tmp_path: Path) -> None:
    assert subject.report is not None
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "cat.png")
    picture = Picture(str(tmp_path / "cat.png"), (("tabby", 0.7),), (("lynx", 0.6),))
    exported = Picture(picture.path, picture.classes2d, (("espresso", 0.5),))
    two = [
        dataclasses.replace(subject, report=dataclasses.replace(subject.report, pictures=[picture])),
        dataclasses.replace(subject, path=Path("net.onnx"), report=Report(pictures=[exported])),
    ]
    text = page(two)
    assert text.count("data:image/jpeg") == 1
    labels = re.findall(r"<text[^>]*>(2D|3D|ONNX|tabby|lynx|espresso)</text>", text)
    assert sorted(labels) == sorted(["2D", "3D", "ONNX", "espresso", "lynx", "tabby"] * 2)  # for screens and phones
    assert text.count("The network along time") == 1  # one network, two files


def test_stages_follow_the_frames(checkpoint: Path) -> None:
    found = {stage.name: stage for stage in stages(subject_of(checkpoint, None, frames=32))}
    assert [stage.frames for stage in found.values()] == [32, 16, 16, 8, 4, 2]
    assert found["layer2"].stride == 2
    assert found["layer2"].kernels == (1, 3)
    fields = [stage.receptive_field for stage in found.values()]
    assert fields == sorted(fields, key=lambda field: field or 0)
    assert [stage_of(name) for name in ("layer1.0.conv1", "blocks.3.0.conv_dw", "stem.conv", "a.b2c.1.d")] == [
        "layer1", "blocks.3", "stem.conv", "a.b2c.1",
    ]  # fmt: skip


def test_energy_by_tap_sums_to_one_and_sees_a_moved_kernel() -> None:
    network = i3dconvert.inflate("resnet18", weights="random")
    state = network.state_dict()
    assert energy_by_tap(network.inflation, state)["conv1"] == (0.0, 1.0, 0.0)
    kernel = state["conv1.weight"]
    state["conv1.weight"] = torch.cat([kernel[:, :, 1:2] * 2, kernel[:, :, 1:2], 0 * kernel[:, :, 1:2]], 2)
    assert energy_by_tap(network.inflation, state)["conv1"] == pytest.approx((0.8, 0.2, 0.0))


@pytest.mark.slow
def test_commands_write_it_or_leave_nothing(run: Run, checkpoint: Path) -> None:
    few = ("--frames", 2, "--size", 64)
    assert run("verify", checkpoint, *few, "--report", "page.txt").code == 1
    result = run("verify", checkpoint, *few, "--report", "page.html")
    assert result.code == 0, result.err
    assert "wrote page.html" in result.out
    assert "layer4.0.conv1" not in result.out  # every layer is in the page, and --layers was not said
    assert "equals its 2D network" in Path("page.html").read_text()
    assert "--force" in run("verify", checkpoint, *few, "--report", "page.html").err
    Path("bench.json").write_text(json.dumps([{"case": 1}]))
    bad = run("report", checkpoint, "bench.json", "-o", "other.html")
    assert bad.code == 1
    assert "bench.json is not the output of `i3dconvert bench --json`" in bad.err
    assert not Path("other.html").exists()
    assert run("report", "bench.json").code == 2


@pytest.mark.slow
def test_report_of_an_export_beside_a_changed_checkpoint(run: Run, subject: Subject) -> None:
    network = i3dconvert.load(subject.path)
    export_onnx(network, "net.onnx")
    with safe_open(subject.path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors | {"fc.bias": tensors["fc.bias"] + 1}, "wrong.safetensors", file.metadata())
    measured = Measurement(Case("net.onnx", "onnx"), 0.1, 0.0, 1, 1.0)
    Path("bench.json").write_text(json.dumps([measured.to_dict()]))
    result = run("report", "net.onnx", "wrong.safetensors", "bench.json", "--frames", 2, "--json")
    assert result.code == 1
    files = json.loads(result.out)["files"]
    assert [file["passed"] for file in files] == [True, False]
    text = Path("net-report.html").read_text()
    assert "wrong.safetensors is not equal to its 2D network" in text
    assert "Speed" in text


def test_report_of_a_file_that_lacks_a_tensor(run: Run, subject: Subject) -> None:
    with safe_open(subject.path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        del tensors["conv5.0.weight"]
        save_file(tensors, "cut.safetensors", file.metadata())
    result = run("report", "cut.safetensors", "-o", "page.html")
    assert result.code == 1
    assert "not equal to its 2D network: integrity" in result.err
    assert "cut.safetensors is not equal to its 2D network" in Path("page.html").read_text()


def test_measurements_come_back_as_they_were() -> None:
    measured = Measurement(Case("net", "onnx", frames=8), 0.1, 0.01, 5, 1.0)
    assert Measurement.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    with pytest.raises(BenchmarkError, match="bench --json"):
        Measurement.from_dict({"case": {}, "seconds": 1})


@pytest.mark.slow
def test_class_names_are_shown_as_text(subject: Subject) -> None:
    names = ("cat", "<b>dog</b>", *map(str, range(30)))
    named = dataclasses.replace(subject, document=dataclasses.replace(subject.document, classes=names))
    shown = page([named])
    assert "cat, &lt;b&gt;dog&lt;/b&gt;, 0, 1" in shown
    assert "17, …" in shown
    assert "<th>classes</th>" not in page([subject])
