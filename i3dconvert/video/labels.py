"""Read class names from the usual files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from i3dconvert.errors import ClassesError, first_line
from i3dconvert.files import check_input, check_text

Names = tuple[str, ...]
Given = Sequence[str] | str | Path | None
"""Names in order, or the path of a file with them."""

LONGEST = 300
"""The most characters of a name."""


def names_of(given: Given) -> Names:
    """Return the given names, or those in the given file; none for None. Raises `ClassesError`."""
    if given is None:
        return ()
    names = read_names(Path(given)) if isinstance(given, str | Path) else tuple(map(str, given))
    return _checked(names, "classes")


def read_names(path: Path) -> Names:
    """Return the names in a `.txt` file, one per line, or in a `.json` file.

    JSON is a list of names, `{"0": "cat", …}` like transformers' `id2label`, `{"cat": 0, …}` like torchvision's
    `class_to_idx`, or a configuration with one of these under its usual key. Raises `ClassesError`.
    """
    check_input(path, ClassesError, "a .txt or .json file with class names")
    check_text(path.stat().st_size, str(path), ClassesError)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _in_json(json.loads(text)) if path.suffix == ".json" else _lines(text)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ClassesError(
            f"{path} is no file of class names ({first_line(error)}); write one per line, or a JSON list"
        ) from None
    return _checked(names, str(path))


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of the class at `index`, or its number if it has none."""
    return names[index] if index < len(names) else f"class {index}"


def check_count(names: Names, classes: int) -> None:
    """Raise `ClassesError` if the number of names is not the number of classes."""
    if names and len(names) != classes:
        raise ClassesError(f"{len(names)} class names are given; the network has {classes} classes")


def _lines(text: str) -> Names:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


_KEYS = ("id2label", "label2id", "class_to_idx", "classes", "labels", "names")


def _in_json(document: Any) -> Names:
    if isinstance(document, Mapping):
        under = next((document[key] for key in _KEYS if isinstance(document.get(key), Mapping | list)), None)
        return _in_json(under) if under is not None else _by_number(document)
    if not isinstance(document, list):
        raise TypeError("neither a list nor a mapping")
    return tuple(_name(entry) for entry in document)


def _by_number(document: Mapping[str, Any]) -> Names:
    """Return the names from `{"0": name, …}` or `{name: 0, …}`."""
    turned = all(isinstance(value, int) for value in document.values())
    by_number = {int(value if turned else key): _name(key if turned else value) for key, value in document.items()}
    return tuple(by_number[index] for index in range(len(document)))


def _name(entry: Any) -> str:
    """Return the name in `"tench"`, or in ImageNet's `["n01440764", "tench"]`."""
    name = entry[-1] if isinstance(entry, list) else entry
    if not isinstance(name, str):
        raise TypeError(f"{str(name)[:40]!r} is not a name")
    return name


def _checked(names: Names, where: str) -> Names:
    if not names:
        raise ClassesError(f"{where} has no class names")
    if long := next((name for name in names if len(name) > LONGEST), None):
        raise ClassesError(f"{where} has a name of {len(long)} characters: {long[:40]}…")
    return names
