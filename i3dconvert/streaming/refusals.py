"""Layers that can't be computed step by step, and the alternatives to recommend."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import fx, nn

from i3dconvert.errors import StreamError
from i3dconvert.lift import layout
from i3dconvert.lift.attention.divided import TimeAttention
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.modules import SinusoidalTime, TimeEmbedding
from i3dconvert.recipes import Attending

_RULE = 'inflate with a rule of kind = "{}", span = 1 after the others, which {} each frame by itself'
_NORM = f"normalises over all frames; {_RULE.format('norm', 'normalises')}"
_POOL = f"is pooled over all frames; {_RULE.format('global', 'pools')}"
_EMBEDDING = "depends on the frame's place in the whole clip; inflate without --time-embedding"
_ATTENTION = "attends to all frames; inflate with --temporal '{}=span:8', so that groups of 8 frames are steps"
_DIVIDED = "attends to all frames at its place; inflate with --recipe factorised, which attends within each frame"
_SHIFTED = "attends to groups that shift around the clip's ends; inflate with --temporal '{}=span:8/0'"
MORE = "increases the number of frames; inflate with --temporal '{}=1', which keeps it"
ODD = (
    "attends to groups of {group} frames, but gets {beyond:+} of them for a whole video; leave `padding` out of the "
    "rules of the layers before it"
)
UNEQUAL = "joins branches with different numbers of frames for a video of whole steps; give them the same paddings"
_OTHER = "is a {} over clips with an unknown reach along time; replace it by a layer of torch"

_FUNCTIONS: dict[str, str] = {
    "whole_clip": _POOL,
    "whole_clip_of_frames": _POOL,
    "resize_time": MORE,
    "leading_alike": _DIVIDED,
    "shifted": _SHIFTED,
}
_ON_CLIPS: dict[str, str] = {"group_norm": _NORM, "instance_norm": _NORM}
_MODULES: dict[type[nn.Module], str] = {
    nn.GroupNorm: _NORM,
    nn.InstanceNorm3d: _NORM,
    TimeEmbedding: _EMBEDDING,
    SinusoidalTime: _EMBEDDING,
    TimeAttention: _DIVIDED,
}


def check(node: fx.Node, module: nn.Module | None, on_clips: bool) -> None:
    """Raise `StreamError` for a node that looks along all of time, a call of `module` or of a function."""
    if why := _attending(facts_of(node).get("temporal")) or _reason(node, module, on_clips):
        refuse(node, why)


def refuse_module(node: fx.Node, module: nn.Module) -> NoReturn:
    """Raise `StreamError` for a module on clips."""
    refuse(node, _OTHER.format(type(module).__name__))


def refuse(node: fx.Node, why: str) -> NoReturn:
    """Raise `StreamError`, naming the layer that a node is part of."""
    pooled = node.target in (layout.whole_clip, layout.whole_clip_of_frames)
    call = next((n for n in (node, *node.all_input_nodes[:pooled]) if n.op == "call_module"), None)
    behind = next((facts_of(user)["layer"] for user in node.users if "layer" in facts_of(user)), None)
    layer = facts_of(node).get("layer") or (call.target if call is not None else behind or node.name)
    raise StreamError(f"the network can't be streamed: {layer} {why.replace('{}', str(layer))}")


def _attending(temporal: Any) -> str:
    if not isinstance(temporal, Attending):
        return ""
    return _DIVIDED if temporal.divided else _ATTENTION if not temporal.group else _SHIFTED if temporal.shift else ""


def _reason(node: fx.Node, module: nn.Module | None, on_clips: bool) -> str:
    if module is not None:
        norm_of_frames = isinstance(module, nn.GroupNorm) and not on_clips
        return next((why for cls, why in _MODULES.items() if isinstance(module, cls) and not norm_of_frames), "")
    name = getattr(node.target, "__name__", str(node.target))
    return _FUNCTIONS.get(name) or (_ON_CLIPS.get(name, "") if on_clips else "")
