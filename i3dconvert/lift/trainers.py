"""What trainers ask of a network beside its forward pass: checkpoints in the backward pass, its head, layer decay."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift import layout
from i3dconvert.lift.tree.blocks import Block, class_of
from i3dconvert.lift.tree.calling import Tree, kind
from i3dconvert.lift.tree.flat import graph_of


def set_grad_checkpointing(network: Block, enable: bool = True) -> None:
    """Keep only what goes into each block in a training step, and compute the block again in the backward pass.

    Blocks are modules of one class that follow one another in a `Sequential`, `ModuleList` or the like, the outermost
    ones; where there are none, the children of the network.
    """
    for tree in network.modules():
        tree.__dict__.pop("_i3d_checkpointed", None)
    if enable:
        for block in list(_blocks(network)) or [child for child in network.children() if kind(child) == "tree"]:
            for tree in [one for one in block.modules() if isinstance(one, Tree)][:1]:
                tree.__dict__["_i3d_checkpointed"] = True


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    classes = Counter(class_of(child) for child in children if kind(child) == "tree")
    for child in children:
        if classes[class_of(child)] > 1 and not isinstance(child, nn.Sequential):
            yield child
        else:
            yield from _blocks(child)


def head_name(network: Block) -> str:
    """The name of the linear layer that gives the scores; raises `LiftError` where there is none."""
    output = graph_of(network).output_node().args[0]
    node = output.args[0] if isinstance(output, fx.Node) and output.target in _OVER_TIME else output
    if isinstance(node, fx.Node) and node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, nn.Linear | nn.Identity):
            return str(node.target)
    raise LiftError("the network has no one linear layer that gives its scores; replace its head by its name")


_OVER_TIME = (layout.mean_over_time, layout.over_time)


def reset_head(network: Block, num_classes: int) -> None:
    """Replace the head by a new linear layer for so many classes; for none, the network gives its features.

    Raises `LiftError` where there is no linear head.
    """
    name = head_name(network)
    owner, _, last = name.rpartition(".")
    head = network.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise LiftError(f"{name} is no linear layer any more, so that its inputs are not known")
    options = {"device": head.weight.device, "dtype": head.weight.dtype}
    new = nn.Linear(head.in_features, num_classes, head.bias is not None, **options) if num_classes else nn.Identity()
    setattr(network.get_submodule(owner), last, new)


class Answers:
    """What a method of the 2D network's answered, by its argument."""

    def __init__(self, by_argument: dict[Any, Any], default: Any) -> None:
        self.by_argument, self.default = by_argument, default

    def __call__(self, argument: Any = None, **named: Any) -> Any:
        argument = next(iter(named.values()), argument)
        return self.by_argument[self.default if argument is None else argument]


def carried(model: Any) -> dict[str, Any]:
    """What a timm network says of itself that holds for the 3D one, its names being the same; else nothing."""
    found: dict[str, Any] = {}
    for name in ("pretrained_cfg", "default_cfg", "num_features", "head_hidden_size"):
        if isinstance(value := getattr(model, name, None), int | dict) or hasattr(value, "to_dict"):
            found[name] = value
    try:
        if callable(getattr(model, "group_matcher", None)):
            found["group_matcher"] = Answers({coarse: model.group_matcher(coarse=coarse) for coarse in (0, 1)}, 0)
        if callable(getattr(model, "no_weight_decay", None)):
            found["no_weight_decay"] = Answers({None: model.no_weight_decay()}, None)
    except (AttributeError, TypeError):
        pass
    return {name: value for name, value in found.items() if _is_kept(value)}


def _is_kept(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - a function within a function, or whatever it holds
        return False
    return True
