"""The record of what is known about a node of a graph."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from torch import fx

from i3dconvert.recipes import Temporal


class Facts(TypedDict, total=False):
    """What is known about a node; torch.fx keeps it in `node.meta`."""

    value: Any
    """Its value on a batch of images: a meta tensor, a number, or a tuple or list of them."""
    batch: Any
    """Which axes of the value follow the batch, as `reading.batch` finds them."""
    scope: str
    """The module of the 2D network whose code computes it; empty for the network's own."""
    call: int
    """The index of that module's call."""
    within: str
    """The module's name, for messages."""
    temporal: Temporal
    """Its window along time, if it is a layer over time."""
    layer: str
    """The name of that layer in the 2D network."""
    like: int
    """The argument whose frames it has, if it is not all of them."""
    scores: int
    """Scores of attention to one key, in a frame."""
    of_pairs: bool
    """Whether its values are those of pairs of frames."""
    pads: tuple[int, ...]
    """What is padded before a convolution that had the padding of `nn.functional.pad`."""
    taps: bool
    """Whether it is a kernel with taps along time."""
    plain: bool
    """Whether it does not follow the clip: a parameter, or a number."""
    beside_clips: bool
    """Whether it joins tensors of one image to clips."""
    form: Any
    """How N and T stand in its value, a `forms.Form`."""
    takes: Any
    """The forms of the arguments of a module's call."""
    gives: Any
    """The form of its result."""
    block: bool
    """Whether the module is one of the 2D network's own."""
    kind: str
    """The class of a layer, to see whether it was replaced."""
    given: str
    """The class of a module of the 2D network that is called as it is."""


def facts_of(node: fx.Node) -> Facts:
    """Return the record of a node, which can be changed."""
    return cast(Facts, node.meta)


KEPT = (
    *("temporal", "layer", "like", "of_pairs", "scores", "plain", "beside_clips"),
    *("form", "takes", "gives", "block", "kind", "given"),
)
"""The facts that the code of a module keeps."""


def kept_facts(node: fx.Node) -> Facts:
    """Return a copy of a node's record that has the facts that the code of a module keeps."""
    return cast(Facts, {key: value for key, value in facts_of(node).items() if key in KEPT})


def without(facts: Facts, *keys: str) -> Facts:
    """Return a copy of a record without some facts."""
    return cast(Facts, {key: value for key, value in facts.items() if key not in keys})
