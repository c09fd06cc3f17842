"""The metadata of a file: one JSON document, in safetensors and ONNX alike."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from i3dconvert.backbones import Changes, Origin
from i3dconvert.backbones.changes import HEADLESS, UNCHANGED
from i3dconvert.backbones.origin import MEMORY
from i3dconvert.checkpoint.trained import Trained
from i3dconvert.errors import CheckpointError, I3DError, LayoutError
from i3dconvert.files import check_text
from i3dconvert.frameworks import Target, check_fits, framework_of, split
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.record import Inflation, Sizes
from i3dconvert.recipes import Recipe
from i3dconvert.version import VERSION
from i3dconvert.video.preprocessing import Preprocessing

SCHEMA = 5
_MOST = 4096
"""The most channels, frames, and pixels in height or width that a file may be for."""
_MOST_NUMBERS = 2**26
"""The most numbers in the image that it may be for: 4096×4096 pixels in RGB, or 512×512 in 200 bands, are fewer."""
KEY = "i3dconvert"
"""The key of the document in a file's metadata."""


@dataclass(frozen=True)
class Document:
    """The metadata of a file."""

    inflation: Inflation
    origin: Origin | None
    sha256: str = ""
    """Hash of the 3D tensors under our names: names, dtypes, shapes, bytes."""
    finetuned: bool = False
    layout: str = ""
    """The framework and the network that the tensors are named for, `NAME:NETWORK`; empty for our own names."""
    intact: bool = True
    """Whether the document's seal matched when it was read."""
    trained: Trained | None = None
    """Which tensors moved since they were inflated, if that is known."""
    exchanged: Mapping[str, Any] = field(default_factory=dict)
    """Modules that replace others of the 2D network, such as its head: see `lift.exchange`."""
    classes: tuple[str, ...] = ()
    """Class names given by the user."""
    changes: Changes = UNCHANGED
    """Changes to a 2D network in memory; those to a network with a name are in its origin."""

    @classmethod
    def for_layout(cls, inflation: Inflation, origin: Origin | None, layout: str, **rest: Any) -> Document:
        """Return the document of a file with a framework's names, `NAME` or `NAME:NETWORK`, or with ours if empty.

        Raises `LayoutError` if the framework's network is not the 3D form that was made.
        """
        if not layout:
            return cls(inflation, origin, **rest)
        if origin is None:
            raise LayoutError(
                f"a network made from a module in memory can't have the layout {layout}: its architecture is unknown"
            )
        framework = framework_of(layout)
        target = framework.target(origin.backbone.qualified, split(layout)[1])
        check_fits(framework, target, inflation, origin)
        return cls(inflation, origin, layout=f"{framework.name}:{target.name}", **rest)

    @property
    def schema(self) -> int:
        """The oldest schema that can express the document.

        Schema 2 added attention over time, 3 rules for norms and global pools, 4 exchanged modules and changes to
        networks in memory, 5 weights that were in memory.
        """
        rules, style = self.inflation.recipe.rules, self.inflation.style
        if self.origin is not None and self.origin.weights.kind == MEMORY:
            return 5
        if self.exchanged or self.changes != UNCHANGED:
            return 4
        if any(rule.kind in ("norm", "global") for rule in rules):
            return 3
        return 2 if style.time_embedding != "none" or any(rule.kind == "attention" for rule in rules) else 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """The user's class names, or those of the 2D weights; none if unknown."""
        return self.classes or tuple(self.origin.class_names() if self.origin is not None else ())

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of pictures; for a network in memory, the one that most networks are trained with."""
        if self.origin is not None:
            return self.origin.preprocessing
        return Preprocessing.of_images(self.inflation.input)

    @property
    def gives_classes(self) -> bool:
        """Whether its outputs are class scores, as far as is known."""
        if self.origin is None:
            return True
        return bool(self.origin.classes) and self.origin.changes.head not in HEADLESS

    @property
    def target(self) -> Target | None:
        """The framework's network that the tensors are named for; None if ours."""
        return framework_of(self.layout).network(split(self.layout)[1]) if self.layout else None

    def dumps(self, beside: Path | None = None) -> str:
        """Return JSON; the path of a weight file is written relative to the directory `beside`."""
        style = asdict(self.inflation.style)
        if style["time_embedding"] == "none":  # schema 1 lacks it
            del style["time_embedding"]
        document: dict[str, Any] = {
            "schema": self.schema,
            "version": VERSION,
            **style,
            "recipe": self.inflation.recipe.to_dict(),
            "input": list(self.inflation.input),
            "minimum_frames": self.inflation.minimum_frames,
            "sha256": self.sha256,
            "finetuned": self.finetuned,
        }
        if self.inflation.tried is not None:
            document["tried"] = [list(axis) for axis in self.inflation.tried]
        if self.inflation.constants:
            document["constants"] = dict(self.inflation.constants)
        beside_it: dict[str, Any] = {
            "layout": self.layout,
            "trained": self.trained.to_dict() if self.trained is not None else None,
            "exchanged": dict(self.exchanged),
            "classes": list(self.classes),
            "changes": vars(self.changes) if self.changes != UNCHANGED else None,
        }
        document |= {key: value for key, value in beside_it.items() if value}
        if self.origin is not None:
            document["origin"] = self.origin.to_dict(beside)
        return json.dumps(document | {"seal": _seal(document)}, sort_keys=True)

    @classmethod
    def loads(cls, text: str, where: Path) -> Document:
        """Read what `dumps` wrote; raises `CheckpointError`, which names the file `where`."""
        check_text(len(text), str(where), CheckpointError)
        try:
            document = json.loads(text)
            schema = document["schema"]
            if not isinstance(schema, int) or schema > SCHEMA:
                raise CheckpointError(f"{where} was written by a newer i3dconvert (schema {schema}); please upgrade")
            style = Style(**{one.name: document[one.name] for one in fields(Style) if one.name in document}).checked()
            recipe = Recipe.from_dict(document["recipe"], f"{where}: recipe")
            origin = Origin.from_dict(document["origin"], where.parent) if "origin" in document else None
            frames = int(document["minimum_frames"])
            channels, height, width = map(int, document["input"])
            clip = (channels, frames, height, width, *(origin.input if origin is not None else ()))
            if not all(0 < size <= _MOST for size in clip):
                raise CheckpointError(f"{where} is for clips of {clip}; no network has a size above {_MOST}")
            if max(channels * height * width, math.prod(clip[4:])) > _MOST_NUMBERS:
                raise CheckpointError(f"{where} is for clips of {clip}, larger than any network's")
            tried = _tried(document["tried"]) if "tried" in document else None
            inflation = Inflation(
                recipe,
                style,
                minimum_frames=frames,
                input=(channels, height, width),
                constants=dict(document.get("constants", {})),
                tried=tried,
            )
            intact = document["seal"] == _seal(document)
            changes = Changes.from_dict(document.get("changes", {}))
            return cls(
                inflation,
                origin,
                str(document["sha256"]),
                bool(document["finetuned"]),
                str(document.get("layout", "")),
                intact,
                Trained.from_dict(document["trained"]) if "trained" in document else None,
                dict(document.get("exchanged", {})),
                tuple(map(str, document.get("classes", ()))),
                changes,
            )
        except I3DError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{where} has damaged i3dconvert metadata ({type(error).__name__}: {error})"
            ) from None


def _tried(axes: Any) -> Sizes:
    (low, high), (narrow, wide) = axes
    return (int(low), int(high)), (int(narrow), int(wide))


def _seal(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document without its hashes."""
    rest = {key: value for key, value in document.items() if key not in ("seal", "sha256")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
