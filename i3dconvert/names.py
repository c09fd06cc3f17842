"""The names of the installed libraries' backbones, read from their sources, so that completion does not need torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from i3dconvert.errors import BackboneError

SOURCES = ("torchvision", "timm")
USER = "user"
"""The source of `PATH.py:NAME`, a user's own network."""
HF = "hf"
"""The source of `hf/FOLDER` and `hf/ORG/NAME`, a network of Hugging Face transformers."""

_FOLDERS = {"torchvision": ("models", "models/segmentation"), "timm": ("models",)}

_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)", re.MULTILINE | re.DOTALL)


@cache
def names(source: str) -> tuple[str, ...]:
    """Return every backbone of `source`, sorted and without a prefix; none if the library is not installed."""
    spec = find_spec(source)
    if spec is None or not spec.submodule_search_locations:
        return ()
    root = Path(spec.submodule_search_locations[0])
    files = (file for folder in _FOLDERS[source] for file in (root / folder).glob("*.py"))
    return tuple(sorted(name for file in files for name in _registered(file)))


def _registered(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if "@register_model" in text:
        yield from _REGISTERED.findall(text)


def qualified(source: str, name: str) -> str:
    """Return the name on the command line: plain for torchvision and users' networks, `timm/NAME` for timm."""
    return f"{source}/{name}" if source in ("timm", HF) else name


def qualified_names(source: str | None = None) -> list[str]:
    """Return the names on the command line."""
    wanted = SOURCES if source is None else (source,)
    return [qualified(s, name) for s in wanted for name in names(s)]


def visible(text: str) -> str:
    """Return a line of text with control characters, which names in a file may have, escaped, such as `\\x1b`."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def near(text: str, known: Iterable[str]) -> str:
    """Return `did you mean …? ` with the names most like a word; empty if there are none."""
    close = get_close_matches(text, list(known), n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}? " if close else ""


def list_models(pattern: str = "*", source: str | None = None) -> list[str]:
    """Return the names of backbones for `inflate` that match a glob such as `resnet*` or `timm/convnext*`.

    A pattern matches timm's names with and without `timm/`. `source` is `torchvision` or `timm`.
    """
    found = qualified_names(source)
    return [name for name in found if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)]


def parse(text: str) -> tuple[str, str]:
    """Split `resnet50` to `("torchvision", "resnet50")`, `timm/resnet50.a1_in1k` to `("timm", "resnet50.a1_in1k")`.

    `path/to/module.py:factory` is a user's own network, `hf/FOLDER` one of transformers; neither is checked. Raises
    `BackboneError` with close matches for an unknown name, or with how to install the library.
    """
    if ".py:" in text:
        return USER, text
    if text.startswith(f"{HF}/"):
        if find_spec("transformers") is None:
            raise BackboneError("transformers is not installed; pip install transformers")
        return HF, text.removeprefix(f"{HF}/")
    if text.endswith(".py"):
        raise BackboneError(f"{text} needs the name of its function or module: {text}:NAME")
    source, slash, name = text.rpartition("/")
    source = source if slash else "torchvision"
    if source not in SOURCES:
        raise BackboneError(
            f"unknown source {source!r} in {text!r}; {near(text, qualified_names())}known: NAME (torchvision), "
            "timm/NAME, hf/FOLDER, hf/ORG/NAME, PATH.py:NAME"
        )
    if not names(source):
        raise BackboneError(f"{source} is not installed; pip install {source}")
    architecture = name.partition(".")[0] if source == "timm" else name
    if architecture in names(source):
        return source, name
    close = get_close_matches(text, qualified_names(), n=4, cutoff=0.6)
    close += [f"timm/{text}"] if text in names("timm") and f"timm/{text}" not in close else []
    hint = f"did you mean {', '.join(close)}?" if close else "`i3dconvert list` lists all"
    raise BackboneError(f"there is no backbone {text!r}; {hint}")
