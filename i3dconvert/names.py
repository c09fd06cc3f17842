"""The names of the installed libraries' backbones, read from their sources, so that completion needs no torch."""

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
"""The source of `PATH.py:FACTORY`, a network of the user's own."""
HF = "hf"
"""The source of `hf/FOLDER` and `hf/ORG/NAME`, a network of Hugging Face transformers."""

_FOLDERS = {"torchvision": ("models", "models/segmentation"), "timm": ("models",)}

_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)", re.MULTILINE | re.DOTALL)


@cache
def names(source: str) -> tuple[str, ...]:
    """Every backbone of `source`, sorted, without a prefix; none where the library is not installed."""
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
    """The name as the command line takes it: torchvision's and the user's bare, timm's as `timm/NAME`."""
    return f"{source}/{name}" if source in ("timm", HF) else name


def qualified_names(source: str | None = None) -> list[str]:
    """The names as the command line takes them."""
    wanted = SOURCES if source is None else (source,)
    return [qualified(s, name) for s in wanted for name in names(s)]


def near(text: str, known: Iterable[str]) -> str:
    """`did you mean …? ` with the names most like a word, for a message; empty where none is."""
    close = get_close_matches(text, list(known), n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}? " if close else ""


def list_models(pattern: str = "*", source: str | None = None) -> list[str]:
    """The backbones that `inflate` takes whose names match a glob such as `resnet*` or `timm/convnext*`.

    A pattern matches timm's names with `timm/` and without. `source` is `torchvision` or `timm`.
    """
    found = qualified_names(source)
    return [name for name in found if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)]


def parse(text: str) -> tuple[str, str]:
    """`resnet50` → `("torchvision", "resnet50")`, `timm/resnet50.a1_in1k` → `("timm", "resnet50.a1_in1k")`.

    `path/to/module.py:factory` is a network of the user's own, `hf/FOLDER` one of transformers; both are taken as said.

    Raises `BackboneError` with close matches for an unknown name, or with the way to install timm.
    """
    if ".py:" in text:
        return USER, text
    if text.startswith(f"{HF}/"):
        if find_spec("transformers") is None:
            raise BackboneError("transformers is not installed; pip install transformers")
        return HF, text.removeprefix(f"{HF}/")
    source, slash, name = text.rpartition("/")
    source = source if slash else "torchvision"
    if source not in SOURCES:
        raise BackboneError(
            f"unknown source {source!r} in {text!r}; known: NAME (torchvision), timm/NAME, hf/FOLDER, hf/ORG/NAME, "
            "PATH.py:FACTORY"
        )
    if not names(source):
        raise BackboneError(f"{source} is not installed; pip install {source}")
    architecture = name.partition(".")[0] if source == "timm" else name
    if architecture in names(source):
        return source, name
    close = get_close_matches(text, qualified_names(), n=4, cutoff=0.6)
    close += [f"timm/{text}"] if text in names("timm") and f"timm/{text}" not in close else []
    hint = f"did you mean {', '.join(close)}?" if close else "`i3dconvert list` shows all"
    raise BackboneError(f"there is no backbone {text!r}; {hint}")
