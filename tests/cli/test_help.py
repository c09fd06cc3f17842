"""Help on a terminal of 80 columns: groups, whole words, whole examples."""

import re

import pytest
from typer.main import get_command

from i3dconvert.cli import app
from i3dconvert.cli.help import PRINTING
from tests.conftest import Run

ROOT = get_command(app)
COMMANDS = {"": ROOT, **ROOT.commands}  # type: ignore[attr-defined]


def joined(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_whole_words_and_examples_at_80_columns(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    shown = run(*name.split(), "--help").out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 * 28
    assert not [line for line in lines if re.search(r"\w-$|\.\.\.$", line) and not line.startswith("Usage:")]
    for param in command.params:
        assert joined(param.help or "") in joined(shown)
    for example in command.epilog.splitlines():
        assert example in [line.partition("Example: ")[2] or line.strip() for line in lines]


@pytest.mark.parametrize("name", ["inflate", "export"])
def test_many_options_stand_in_groups_the_most_used_first(name: str, run: Run) -> None:
    shown = run(name, "--help").out
    groups = re.findall(r"^(\w.*):\n((?:  .*\n)+)", shown, re.MULTILINE)
    names = [group for group, _ in groups]
    assert names[:2] == ["Arguments", "Options"]
    assert names[-1] == PRINTING
    assert len(names) >= 6
    assert all(rows.count("\n  -") <= 9 for _, rows in groups)
    assert "--output" in groups[1][1]
