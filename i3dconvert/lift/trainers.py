"""Methods for trainers: gradient checkpointing, the head, layer decay."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from i3dconvert.errors import AbsentError, LiftError
from i3dconvert.lift import layout
from i3dconvert.lift.reading.copying import on_meta
from i3dconvert.lift.tree.blocks import Block
from i3dconvert.lift.tree.calling import Tree, kind
from i3dconvert.lift.tree.code import Code
from i3dconvert.lift.tree.flat import graph_of
from i3dconvert.lift.tree.halves import halves


def set_grad_checkpointing(network: Block, enable: bool = True) -> None:
    """Store only the input of each block in a training step, and recompute the block in the backward pass.

    Blocks are the outermost modules of one class beside each other; of a list of `Sequential` modules the blocks in
    them, or these modules themselves. If the network has no blocks, they are its children.
    """
    for tree in network.modules():
        tree.__dict__.pop("_i3d_checkpointed", None)
    if enable:
        for block in list(_blocks(network)) or [child for child in network.children() if kind(child) == "tree"]:
            for tree in [one for one in block.modules() if isinstance(one, Tree)][:1]:
                tree.__dict__["_i3d_checkpointed"] = True


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    classes = Counter(type(child) for child in children if kind(child) == "tree")
    for child in children:
        if classes[type(child)] > 1 and not isinstance(child, nn.Sequential):
            yield child
        elif inside := list(_blocks(child)):
            yield from inside
        elif classes[type(child)] > 1 and isinstance(module, nn.ModuleList):
            yield child


def head_name(network: Block) -> str:
    """Return the name of the linear layer that returns the scores; raises `AbsentError` if there is none."""
    node, found = _scores(network), ""
    while isinstance(node, fx.Node) and (name := _called(node)):
        module = network.get_submodule(name)
        if not isinstance(module, nn.Linear | nn.Identity):
            break
        found, node = name, node.args[0]
        if isinstance(module, nn.Linear | NoHead):
            break
    if not found:
        raise AbsentError("no single linear layer returns the network's scores; replace its head by name")
    return found


def head_names(network: Block) -> tuple[str, ...]:
    """Return the names of the linear layers that return the scores: several if timm's `get_classifier` says so."""
    heads: tuple[str, ...] = network.__dict__["_i3d_carried"].get("heads", ())
    return heads or (head_name(network),)


def get_classifier(network: Block) -> Any:
    """Return the head, or a tuple of several, as timm's networks do."""
    heads = tuple(network.get_submodule(name) for name in head_names(network))
    return heads if len(heads) > 1 else heads[0]


def num_classes(network: Block) -> int:
    """Return the number of classes of the head; 0 if it was removed."""
    return int(getattr(network.get_submodule(head_names(network)[0]), "out_features", 0))


def _called(node: fx.Node) -> str:
    """Return the layer that a node calls, or whose weight a product uses."""
    kernel = node.args[1] if layout.operation(node) == "linear" else None
    if isinstance(kernel, fx.Node) and kernel.op == "get_attr":
        return str(kernel.target).removesuffix(".weight")
    return str(node.target) if node.op == "call_module" else ""


def _scores(network: Block) -> Any:
    """Return the network's output before the mean over time; of several values, the logits."""
    output: Any = graph_of(network).output_node().args[0]
    if isinstance(output, dict):
        output = output.get("logits", next(iter(output.values())))
    return output.args[0] if isinstance(output, fx.Node) and output.target in _OVER_TIME else output


_OVER_TIME = (layout.mean_over_time, layout.over_time)


class NoHead(nn.Identity):
    """Replaces a removed head and records what a new one needs."""

    def __init__(self, in_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.bias = in_features, bias


def reset_head(network: Block, num_classes: int) -> None:
    """Replace each head by a new linear layer for `num_classes` classes; with 0, the network returns its features.

    Raises `LiftError` if there is no linear head.
    """
    for name in head_names(network):
        _reset(network, name, num_classes)


def _reset(network: Block, name: str, num_classes: int) -> None:
    head = network.get_submodule(name)
    if not isinstance(head, nn.Linear | NoHead):
        raise LiftError(f"{name} is no longer a linear layer, so its inputs are unknown")
    bias = head.bias if isinstance(head, NoHead) else head.bias is not None
    like = next(network.parameters())
    options = {"device": like.device, "dtype": like.dtype}
    new = nn.Linear(head.in_features, num_classes, bias, **options) if num_classes else NoHead(head.in_features, bias)
    network.set_submodule(name, new)


def reset_classifier(network: Block, num_classes: int, global_pool: str | None = None) -> None:
    """Call `reset_head` under timm's name; raises `LiftError` for another pooling, which the network's code sets."""
    if global_pool is not None:
        raise LiftError(f"the pooling is part of the 2D network: build that with global_pool={global_pool!r}")
    reset_head(network, num_classes)


def parts(model: Any, code: Code, shape: tuple[int, int, int]) -> dict[str, Code]:
    """Return `forward_features` and `forward_head` of a network whose forward pass is their composition, as in timm."""
    if not all(callable(getattr(model, name, None)) for name in _PARTS):
        return {}
    network: Any = on_meta(model).eval()
    ran: dict[str, tuple[Any, Any]] = {}
    gave: list[tuple[str, Any, int]] = []
    for name in _PARTS:
        setattr(network, name, partial(_noted, ran, name, getattr(network, name)))
    for name, child in network.named_modules():
        child.register_forward_hook(partial(_gave, gave, name))
    image = next(network.parameters()).new_empty(2, *shape)
    try:
        output = network(image)
    except Exception:  # noqa: BLE001 - constants and values of masks are only known while reading
        return {}
    if ran.keys() != set(_PARTS):
        return {}
    (given, features), (across, scores) = (ran[name] for name in _PARTS)
    if given is not image or across is not features or scores is not output:
        return {}
    found = halves(code, {name for name, value, at in gave if value is features and at == features._version})
    return {name: part.compiled() for name, part in zip(_PARTS, found or (), strict=False)}


_PARTS = ("forward_features", "forward_head")


def _noted(ran: dict[str, tuple[Any, Any]], name: str, method: Any, value: Any, *args: Any, **named: Any) -> Any:
    result = method(value, *args, **named)
    ran[name] = (value, result)
    return result


def _gave(gave: list[tuple[str, Any, int]], name: str, module: nn.Module, args: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        gave.append((name, output, output._version))


def run_part(network: Block, part: Code, value: Tensor, pre_logits: bool = False) -> Any:
    """Run one half of the network; raises `LiftError` for `pre_logits`, which timm's heads support."""
    if pre_logits:
        raise LiftError("use reset_head(0) for features; forward_head returns scores")
    return part.run(network, (value,), {})


def loss(logits: Any, labels: Tensor, problem: str | None = None) -> Tensor:
    """Return the loss of transformers' image classifiers; raises `LiftError` if the output is not rows of scores."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise LiftError("labels= needs a classifier; compute the loss from the network's output")
    several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    return _LOSSES[problem or ("regression" if logits.shape[1] == 1 else several)](logits, labels)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": lambda logits, labels: functional.mse_loss(logits.squeeze(), labels.squeeze()),
    "single_label_classification": functional.cross_entropy,
    "multi_label_classification": functional.binary_cross_entropy_with_logits,
}
"""Losses by the `problem_type` of a configuration."""


class Answers:
    """Answers of a method of the 2D network, by its argument."""

    def __init__(self, by_argument: dict[Any, Any], default: Any) -> None:
        self.by_argument, self.default = by_argument, default

    def __call__(self, argument: Any = None, **named: Any) -> Any:
        argument = next(iter(named.values()), argument)
        argument = self.default if argument is None else argument
        if argument not in self.by_argument:
            raise LiftError(f"the 2D network does not accept {argument!r} here")
        return self.by_argument[argument]


def carried(model: Any) -> dict[str, Any]:
    """Return the attributes of a timm network that also hold for the 3D one, whose names are the same; else nothing."""
    found: dict[str, Any] = {}
    for name in ("pretrained_cfg", "default_cfg", "num_features", "head_hidden_size"):
        if isinstance(value := getattr(model, name, None), int | dict) or hasattr(value, "to_dict"):
            found[name] = value
    answers: dict[str, Callable[[], Any]] = {
        "group_matcher": lambda: Answers({0: model.group_matcher(coarse=False), **_coarse(model)}, 0),
        "no_weight_decay": lambda: Answers({None: model.no_weight_decay()}, None),
        "heads": lambda: heads if len(heads := _heads(model)) > 1 else None,
    }
    for name, answer in answers.items():
        with suppress(Exception):  # the library's own refusals: what has no answer there has none here
            if (value := answer()) is not None:
                found[name] = value
    return {name: value for name, value in found.items() if _is_kept(value)}


def _coarse(model: Any) -> dict[int, Any]:
    """Return the coarse groups by their argument, if the network has some."""
    with suppress(AssertionError, NotImplementedError):
        return {1: model.group_matcher(coarse=True)}
    return {}


def _heads(model: Any) -> tuple[str, ...]:
    """Return the names of the linear layers that timm's `get_classifier` returns."""
    find = getattr(model, "get_classifier", None)
    given = find() if callable(find) else ()
    heads = given if isinstance(given, tuple) else (given,)
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(names[id(head)] for head in heads if isinstance(head, nn.Linear) and id(head) in names)


INSTEAD: dict[str, str] = {
    **dict.fromkeys(
        ("forward_intermediates", "get_intermediate_layers"),
        "register forward hooks on the blocks, whose outputs it gives",
    ),
    "prune_intermediate_layers": "put nn.Identity() in the place of blocks, or prune the 2D network and inflate that",
    **dict.fromkeys(("set_input_size", "set_distilled_training"), "call it on the 2D network, and inflate that"),
    **dict.fromkeys(("config", "feature_info"), "ask the 2D network, whose modules have the same names"),
}
"""What to use instead of attributes of timm's and transformers' networks that can't be carried."""


def _is_kept(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - a nested function, or anything else that can't be pickled
        return False
    return True
