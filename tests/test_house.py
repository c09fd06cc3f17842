"""The house stays light: few files at the top, small files, functions with few arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import i3dconvert

HOME = Path(i3dconvert.__file__).parent
FILES = sorted(HOME.rglob("*.py"))


def wide(text: str, most: int = 7) -> Iterator[str]:
    """The functions with more than `most` arguments, but for `self` and what the package's top names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in i3dconvert.__all__:
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([name for name in names if name.arg not in ("self", "cls")]) > most:
                yield node.name


def test_there_are_few_files_at_the_top() -> None:
    assert len([path for path in FILES if path.parent == HOME]) <= 12


def test_no_file_is_long() -> None:
    assert [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 350] == []


def test_no_function_below_the_command_line_is_wide() -> None:
    assert list(wide("def f(self, a, b, c, d, e, f, g, h): ...")) == ["f"]
    below = (path for path in FILES if path.parent.name != "cli")
    assert [name for path in below for name in wide(path.read_text(encoding="utf-8"))] == []


def test_every_room_says_what_it_is_and_what_it_imports() -> None:
    said = {
        path.parent.name: ast.get_docstring(ast.parse(path.read_text())) or "" for path in HOME.glob("*/__init__.py")
    }
    assert [room for room, text in said.items() if room != "cli" and "Imports" not in text] == []
