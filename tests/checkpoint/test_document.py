"""What a file says of itself: its schema, its seal, and what is refused of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from i3dconvert.backbones import Weights
from i3dconvert.backbones.changes import Changes
from i3dconvert.backbones.origin import KINDS, MEMORY
from i3dconvert.checkpoint import read
from i3dconvert.checkpoint.document import SCHEMA, Document
from i3dconvert.errors import BackboneError, CheckpointError
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.record import Inflation
from i3dconvert.recipes import PRESETS, Recipe, Rule

WHERE = Path("net.safetensors")
DOCUMENT = Document(
    Inflation(PRESETS["uniform"], Style("mean").checked(), input=(1, 20, 30), minimum_frames=3), None, "ab"
)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(DOCUMENT.dumps()) | values)


def test_it_comes_back_as_it_was() -> None:
    again = Document.loads(DOCUMENT.dumps(), WHERE)
    assert again == DOCUMENT
    assert again.intact
    assert (again.schema, again.target) == (1, None)
    tuned = replace(DOCUMENT, finetuned=True)
    assert Document.loads(tuned.dumps(), WHERE).finetuned


@pytest.mark.parametrize(
    ("recipe", "time_embedding", "schema"),
    [
        (PRESETS["uniform"], "none", 1),
        (PRESETS["joint"], "none", 2),
        (PRESETS["c2d"], "none", 3),
        (Recipe("r", (Rule(kernel=3), Rule(kind="attention", span=1))), "none", 2),
        (PRESETS["uniform"], "zeros", 2),
        (PRESETS["uniform"], "sinusoidal-learned", 2),
    ],
)
def test_the_schema_is_the_oldest_that_says_all(recipe: Recipe, time_embedding: str, schema: int) -> None:
    style = replace(DOCUMENT.inflation.style, time_embedding=time_embedding)
    document = replace(DOCUMENT, inflation=replace(DOCUMENT.inflation, recipe=recipe, style=style))
    written = json.loads(document.dumps())
    assert written["schema"] == document.schema == schema
    assert ("time_embedding" in written) == (time_embedding != "none")
    assert Document.loads(document.dumps(), WHERE) == document


def test_weights_from_memory_alone_need_the_newest_schema(checkpoint: Path) -> None:
    document, _ = read(checkpoint)
    assert document.origin is not None
    of = {kind: replace(document.origin, weights=Weights(kind)) for kind in KINDS}
    schemas = {kind: replace(document, origin=origin).schema for kind, origin in of.items()}
    assert {kind for kind, schema in schemas.items() if schema == 5} == {MEMORY}


def test_features_are_no_classes(checkpoint: Path) -> None:
    document, _ = read(checkpoint)
    assert document.origin is not None
    assert document.gives_classes is True
    assert replace(document, origin=replace(document.origin, classes=0)).gives_classes is False


def test_the_same_document_is_the_same_text() -> None:
    assert list(json.loads(DOCUMENT.dumps())) == sorted(json.loads(DOCUMENT.dumps()))


@pytest.mark.parametrize("seal", ["0" * 64, "f" * 64])
def test_another_seal_is_seen(seal: str) -> None:
    assert not Document.loads(changed(seal=seal), WHERE).intact


@pytest.mark.parametrize(
    "values", [{"init": "center"}, {"minimum_frames": 4}, {"input": [3, 20, 30]}, {"finetuned": True}, {"version": "9"}]
)
def test_a_change_breaks_the_seal(values: dict[str, Any]) -> None:
    assert not Document.loads(changed(**values), WHERE).intact


def test_the_hash_of_the_tensors_has_a_check_of_its_own() -> None:
    assert Document.loads(changed(sha256="cd"), WHERE) == replace(DOCUMENT, sha256="cd")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema": SCHEMA + 1}, "newer i3dconvert .schema 6"),
        ({"schema": "1"}, "newer i3dconvert"),
        ({"schema": None}, "newer i3dconvert"),
        ({"input": [3, 20]}, "damaged i3dconvert metadata .ValueError"),
        ({"minimum_frames": "three"}, "damaged i3dconvert metadata .ValueError"),
        ({"recipe": 3}, "recipe: expected a table"),
        ({"init": "median"}, "unknown init 'median'"),
    ],
)
def test_what_can_not_be_read_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as raised:
        Document.loads(changed(**values), WHERE)
    assert type(raised.value).__module__ == "i3dconvert.errors"


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_text_that_is_no_document(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"net\.safetensors has damaged i3dconvert metadata"):
        Document.loads(text, WHERE)


def test_changes_of_older_files_are_read_but_for_a_stem_that_is_not_the_2d_networks() -> None:
    assert Changes.from_dict({"without": "maxpool", "stem_rank": 0}) == Changes(without="maxpool")
    with pytest.raises(BackboneError, match="use r3d_18"):
        Changes.from_dict({"without": "maxpool", "stem_rank": 44})
