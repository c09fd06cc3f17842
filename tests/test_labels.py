"""Names of classes in the files that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from i3dconvert.errors import ClassesError
from i3dconvert.video.labels import check_count, names_of, read_names


@pytest.mark.parametrize(
    "document",
    [
        ["cat", "dog"],
        {"0": "cat", "1": "dog"},
        {"cat": 0, "dog": 1},
        {"0": ["n1", "cat"], "1": ["n2", "dog"]},
        {"model_type": "resnet", "id2label": {"1": "dog", "0": "cat"}},
        {"class_to_idx": {"dog": 1, "cat": 0}},
    ],
)
def test_json_in_its_forms(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(document))
    assert read_names(path) == ("cat", "dog")


@pytest.mark.parametrize("text", ["", "3", "[]", "[1, 2]", '{"0": "cat", "2": "dog"}', "{", f'["{"x" * 301}"]'])
def test_files_without_names_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(ClassesError):
        read_names(path)


def test_lists_and_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\r\n\n dog \n", encoding="utf-8-sig")
    assert names_of(str(tmp_path / "names.txt")) == names_of(["cat", "dog"]) == ("cat", "dog")
    assert names_of(None) == ()
    with pytest.raises(ClassesError, match="there is no file"):
        names_of(tmp_path / "none.txt")
    with pytest.raises(ClassesError, match="2 class names"):
        check_count(("cat", "dog"), 3)
