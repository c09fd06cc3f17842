"""What the texts of this repository do not say."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("i3dconvert", "examples", "tests", "tools", "docs")


def test_no_docstring_begins_with_of() -> None:
    """A docstring names the thing or says what the function does; "Of the …" leaves the noun to the reader."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    found = {str(file): re.findall(r'^\s*r?"""Of\b.*', file.read_text(encoding="utf-8"), re.M) for file in files}
    assert {file: texts for file, texts in found.items() if texts} == {}
