"""`list` says what the libraries say, without importing them: from a table for each of their versions."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from i3dconvert import catalogue
from i3dconvert.backbones import Backbone, build, census, library
from i3dconvert.backbones.library import Library
from i3dconvert.backbones.torchvision import Torchvision
from i3dconvert.cli import render
from i3dconvert.names import SOURCES, names, visible
from tests.conftest import Run

CONSTRAINTS = Path(__file__).parent.parent.parent / "constraints.txt"
ALL = ("list", "-s", "torchvision", "--json")
"""torchvision answers at once."""


def test_the_pinned_versions_are_shipped() -> None:
    pinned = re.findall(r"^(torchvision|timm)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert sorted(path.name for path in catalogue.SHIPPED.iterdir()) == sorted(f"{n}-{v}.json" for n, v in pinned)


@pytest.mark.parametrize(
    ("source", "sample", "small"),
    [
        ("torchvision", ("resnet50", "vit_h_14", "lraspp_mobilenet_v3_large"), ("squeezenet1_1", "mnasnet0_5")),
        ("timm", ("resnet50", "resnet50t", "convnext_tiny"), ("resnet18", "test_vit", "lcnet_035")),
    ],
)
def test_a_shipped_table_says_what_the_library_says(
    source: str, sample: tuple[str, ...], small: tuple[str, ...]
) -> None:
    if not catalogue.path_of(source).exists():
        pytest.skip(f"{source} is not of the pinned version")
    table = catalogue.read(source)
    assert list(table) == sorted(names(source))
    assert {name: list(table[name].weights) for name in sample} == {n: library(source).offered(n) for n in sample}
    assert all(entry.parameters for entry in table.values())
    for name in small:
        network = build(Backbone.of(source, name))
        assert table[name].parameters == sum(parameter.numel() for parameter in network.parameters())


def test_list_imports_no_library() -> None:
    if not all(catalogue.path_of(source).exists() for source in SOURCES):
        pytest.skip("not the pinned versions")
    script = (
        "import sys; from i3dconvert.cli import main\n"
        "for words in (), ('resnet*', '--json'), ('timm/vit*', '--source', 'timm'), ('-q',):\n"
        "    assert main(['list', *words]) == 0\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert re.search(r"^ timm/resnet18 +11,689,512  a1_in1k, .* resnet +$", done.stdout, re.MULTILINE)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that are asked, of versions whose tables are not shipped."""
    calls: list[str] = []
    taken = census.taken
    monkeypatch.setattr(census, "taken", lambda source: calls.append(source) or taken(source))
    monkeypatch.setattr(catalogue, "version", lambda source: "0.0.7")
    return calls


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where torchvision's table of that version is kept."""
    return tmp_path / "cache" / "i3dconvert" / "backbones" / "torchvision-0.0.7.json"


def test_another_version_is_asked_once(run: Run, asked: list[str], kept: Path) -> None:
    first = run(*ALL)
    rows = {row["name"]: row for row in json.loads(first.out)}
    assert [*rows] == list(names("torchvision"))
    assert rows["resnet50"] == {
        "name": "resnet50",
        "parameters": 25557032,
        "weights": ["IMAGENET1K_V2", "IMAGENET1K_V1"],
        "recipe": "resnet",
    }
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert run(*ALL) == first
    assert asked == ["torchvision"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"3",
        b'{"resnet18":3}',
        b'{"resnet18":[]}',
        b'{"resnet18":["11689512"]}',
        b'{"resnet18":[11689512,1]}',
        b'{"resnet18":[11689512]}',  # and no other
    ],
    ids=repr,
)
def test_a_damaged_table_is_made_again(content: bytes, run: Run, asked: list[str], kept: Path) -> None:
    first = run(*ALL)
    whole = kept.read_bytes()
    kept.write_bytes(content)
    assert run(*ALL) == first
    assert kept.read_bytes() == whole
    assert len(asked) == 2


def test_without_a_cache_it_is_asked_each_time(
    run: Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way")
    first = run(*ALL)
    assert (first.code, first.err) == (0, "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert run(*ALL) == first
    assert len(asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_of_a_library_that_says_no_version_nothing_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    assert len(json.loads(run(*ALL).out)) == len(names("torchvision"))
    assert not [*tmp_path.iterdir()]


def test_a_version_is_that_without_what_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", {"torchvision": "0.29.1+cpu", "timm": "1.0.31"}.__getitem__)
    assert [catalogue.path_of(source).name for source in SOURCES] == ["torchvision-0.29.1.json", "timm-1.0.31.json"]


def test_parameters_that_no_table_has_are_counted_a_few_at_a_time(
    run: Run, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Torchvision, "parameters", Library.parameters)

    def parameters(*words: str) -> dict[str, int | None]:
        return {row["name"]: row["parameters"] for row in json.loads(run(*ALL, *words).out)}

    assert {*parameters().values()} == {None}  # they are too many
    assert parameters("*net18") == {"resnet18": 11689512}
    assert parameters("regnet_y_400mf") == {"regnet_y_400mf": None}  # it can't be counted
    assert {name: count for name, count in parameters().items() if count} == {"resnet18": 11689512}
    assert len(asked) == 1


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [400, 72])
def test_a_table_looks_as_rich_draws_it(terminal: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("backbone", "parameters#", "weights", "画")
    rows = [
        ("resnet18", 11689512, "IMAGENET1K_V1", None),
        ("timm/resnet50", 25557032, ", ".join(catalogue.read("timm")["resnet50"].weights), "日本語"),
        ("a\nb", None, "a_name_without_spaces_that_has_to_be_cut_somewhere" * 2, "\x07c"),
    ]
    console = partial(
        Console, width=width, force_terminal=terminal, legacy_windows=False, soft_wrap=True, highlight=False
    )
    ours, theirs = io.StringIO(), io.StringIO()
    table = Table(title="backbones", title_justify="left", box=box.SIMPLE_HEAD if terminal else None)
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(render.number(cell))) for cell in row))
    console(file=theirs).print(table)
    monkeypatch.setattr(render, "_console", lambda: console(file=ours))
    render.show_table(columns, rows, "backbones")
    assert _plain(ours) == _plain(theirs)
    assert ("\x1b[1m" in ours.getvalue()) == terminal


def _plain(file: Any) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in file.getvalue().splitlines()]


def test_a_terminal_without_line_drawing_gets_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(
        render, "_console", lambda: Console(file=file, width=80, color_system=None, force_terminal=True)
    )
    render.show_table(("layer", "kernel#"), [("conv1", 3)])
    lines = [line.strip() for line in written.getvalue().decode().splitlines()]
    assert lines == ["", "layer   kernel", "-" * 16, "conv1        3", ""]


def test_a_table_is_drawn_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(render, "_PIPE_WIDTH", 8)
    render.show_table(("a", "b", "c"), [("12", "3", "4")])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["a", "b", "c"], ["1", "3", "4"], ["2"]]
