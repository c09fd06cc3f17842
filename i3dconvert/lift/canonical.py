"""Rewrite the traced graph to a canonical form, so that later steps meet fewer cases."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from i3dconvert.lift import layout
from i3dconvert.lift.computed import CLASSES, called
from i3dconvert.lift.facts import Facts, facts_of
from i3dconvert.lift.reading import Multiples, Reading
from i3dconvert.lift.reading.records import leaves

_POOLS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "max_pool2d": (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    "avg_pool2d": (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
}


_PADS = (nn.ZeroPad2d, nn.ConstantPad2d)


def canonical(traced: Reading) -> Reading:
    """Rewrite pooling functions as modules, so that recipes reach them by name, count axes of images like those of
    clips, write einsums as matrix products, put the weights of attention first in its product, and give fused attention
    the axis of heads that ONNX wants."""
    for node in list(traced.graph.nodes):
        if layout.operation(node) == "einsum":
            _use_matmul(node)
        if layout.operation(node) == "matmul":
            _use_weights_first(traced, node)
        if layout.operation(node) == "scaled_dot_product_attention":
            _use_heads(node)
        if node.op == "call_function" and layout.operation(node) in _POOLS:
            _use_module(traced, node)
        if node.op == "call_function" and layout.operation(node) in CLASSES:
            _use_convolution(traced, node)
        if layout.operation(node) in layout.REDUCTIONS:
            _count_axes_as_of_clips(node)
        if isinstance(pad := traced.module(node), _PADS):
            facts_of(node)["pads"] = pad.padding
    return traced


def function_name(node: fx.Node) -> str:
    """Return a name for what a function computes: the module that calls it, and the node's own name."""
    scope = facts_of(node)["scope"]
    return f"{scope}.{node.name.removeprefix(scope.replace('.', '_') + '_')}".lstrip(".")


def _use_module(traced: Reading, node: fx.Node) -> None:
    cls, names = _POOLS[layout.operation(node)]
    arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    image = node.args[0] if node.args else arguments.pop("input")
    if any(isinstance(value, fx.Node) for value in leaves(arguments)):
        return
    target = function_name(node)
    while target in dict(traced.root.named_modules()):
        target += "_function"
    traced.root.set_submodule(target, cls(**arguments))
    node.op, node.target, node.args, node.kwargs = "call_module", target, (image,), {}


def _use_convolution(traced: Reading, node: fx.Node) -> None:
    """Replace `F.conv2d(x, self.weight, …)` by the layer that holds the kernel, if it holds no other tensors."""
    call = called(node)
    if call is None:
        return
    image, kernel, bias, layer = call.image, call.kernel, call.bias, call.layer
    owner, _, last = str(getattr(kernel, "target", "")).rpartition(".")
    ours = (kernel, bias) if isinstance(bias, fx.Node) else (kernel,)
    if not owner or last != "weight" or any(not isinstance(n, fx.Node) or n.op != "get_attr" for n in ours):
        return
    if isinstance(bias, fx.Node) and bias.target != f"{owner}.bias":
        return
    module = traced.root.get_submodule(owner)
    held = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    if not held <= {"weight", "bias"}:
        return
    elsewhere = any(n.op == "call_module" and n.target == owner for n in node.graph.nodes)
    if elsewhere and repr(module) != repr(layer):
        return  # it is also called in another way
    for name, parameter in module.named_parameters():
        if name in held & {name for name, _ in layer.named_parameters()}:
            setattr(layer, name, parameter)
    if "bias" in held and bias is None:
        return
    for name, child in module.named_children():  # a padding that it calls, in smp's EfficientNet
        layer.add_module(name, child)
    traced.root.set_submodule(owner, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", owner, (image,), {}


def _use_matmul(node: fx.Node) -> None:
    """Replace `einsum("bhid,bhjd->bhij", q, k)` by `q @ k.transpose(-2, -1)`, and `"bhij,bhjd->bhid"` by `w @ v`."""
    equation, *operands = node.args
    operands = [*operands[0]] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    given, _, result = str(equation).replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    if len(operands) != 2 or not all(isinstance(operand, fx.Node) for operand in operands) or "." in given:
        return
    terms = (first, second, result)
    if len(result) < 3 or len({len(term) for term in terms}) > 1 or len({term[:-2] for term in terms}) > 1:
        return
    i, inner, j, k, row, column = [letter for term in terms for letter in term[-2:]]
    left, right = operands
    assert isinstance(right, fx.Node)
    if (row, column, inner) == (i, j, k) and i != j:
        with node.graph.inserting_before(node):
            turned = node.graph.call_method("transpose", (right, -2, -1))
        here = _place_of(node)
        turned.meta = {**facts_of(right), **here, "value": facts_of(right)["value"].transpose(-2, -1)}
        right = turned
    elif (row, column, inner) != (i, k, j):
        return
    node.target, node.args, node.kwargs = torch.matmul, (left, right), {}


def _use_weights_first(traced: Reading, node: fx.Node) -> None:
    """Replace `v @ w.mT` by `(w @ v.mT).mT` for weights `w` that are a softmax, as attention is written elsewhere."""
    values, turned = node.args if len(node.args) == 2 else (None, None)
    if not isinstance(values, fx.Node) or not isinstance(turned, fx.Node) or not _is_turned(turned):
        return
    weights = turned.all_input_nodes[0]
    if not _is_softmax(traced, weights) or facts_of(values)["value"].dim() != facts_of(weights)["value"].dim():
        return
    here = _place_of(node)

    def turn(of: fx.Node) -> fx.Node:
        new = node.graph.call_method("transpose", (of, -2, -1))
        batch = facts_of(of)["batch"]
        axes = (*batch[:-2], batch[-1], batch[-2]) if batch else batch
        new.meta = {**facts_of(of), **here, "value": facts_of(of)["value"].transpose(-2, -1), "batch": axes}
        return new

    with node.graph.inserting_before(node):
        first = turn(values)
    with node.graph.inserting_after(node):
        last = turn(node)
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not last)
    node.target, node.op, node.args, node.kwargs = torch.matmul, "call_function", (weights, first), {}
    node.meta, last.meta = last.meta, node.meta


def _is_turned(node: fx.Node) -> bool:
    """Return whether a node exchanges the last two axes."""
    if node.target is getattr:
        return bool(node.args[1] == "mT")
    dims = facts_of(node)["value"].dim()
    axes = [axis % dims for axis in node.args[1:] if isinstance(axis, int)]
    return layout.operation(node) in ("transpose", "swapaxes", "swapdims") and sorted(axes) == [dims - 2, dims - 1]


def _is_softmax(traced: Reading, node: fx.Node) -> bool:
    """Return whether a node is a softmax, or what dropout or a cast leaves of it."""
    while True:
        module = traced.module(node)
        if isinstance(module, nn.Softmax) or layout.operation(node) == "softmax":
            return True
        if not isinstance(module, nn.Dropout) and layout.operation(node) not in ("dropout", "to", "type_as"):
            return False
        node = node.all_input_nodes[0]


def _use_heads(node: fx.Node) -> None:
    """Replace fused attention on `(B, L, D)` by that on `(B, 1, L, D)`, the only form that torch exports to ONNX."""
    names = ("query", "key", "value", "attn_mask")
    given = {name: layout.argument(node, name, place) for place, name in enumerate(names)}
    tensors = {name: one for name, one in given.items() if isinstance(one, fx.Node)}
    if not {*names[:3]} <= tensors.keys() or any(facts_of(tensors[name])["value"].dim() != 3 for name in names[:3]):
        return
    here, value, batch = _place_of(node), facts_of(node)["value"], facts_of(node)["batch"]
    with node.graph.inserting_before(node):
        for name, one in tensors.items():
            if facts_of(one)["value"].dim() == 3:
                given[name] = node.graph.call_method("unsqueeze", (one, 1))
                given[name].meta = {
                    **facts_of(one),
                    **here,
                    **_with_heads(facts_of(one)["value"], facts_of(one)["batch"]),
                }
    rest = {key: one for key, one in node.kwargs.items() if key not in names}
    node.args, node.kwargs = (*given.values(), *node.args[len(names) :]), rest
    with node.graph.inserting_after(node):
        single = node.graph.call_method("squeeze", (node, 1))
    node.replace_all_uses_with(single, delete_user_cb=lambda user: user is not single)
    single.meta = {**facts_of(node), "value": value, "batch": batch}
    node.meta = {**facts_of(node), **_with_heads(value, batch)}


def _place_of(node: fx.Node) -> Facts:
    return {"scope": facts_of(node)["scope"], "call": facts_of(node)["call"]}


def _with_heads(value: Tensor, multiples: Multiples) -> Facts:
    """Return the facts about a value with an axis of heads."""
    return {"value": value.unsqueeze(1), "batch": (multiples[0], 0, *multiples[1:]) if multiples else multiples}


def _count_axes_as_of_clips(node: fx.Node) -> None:
    """Replace `mean(x, (2, 3))` by `mean(x, (-2, -1))`, which is height and width in a clip too."""
    image, dim = node.args[0] if node.args else None, layout.argument(node, "dim", 1)
    value = facts_of(image)["value"] if isinstance(image, fx.Node) else None
    dims = dim if isinstance(dim, tuple | list) else [dim]
    if not isinstance(value, Tensor) or value.dim() != 4 or not all(type(d) is int for d in dims):
        return
    counted = [{1: 1, 2: -2, 3: -1}.get(d % 4, d) for d in dims]
    keep = layout.argument(node, "keepdim", 2, False)
    node.kwargs = {**node.kwargs, "dim": counted if isinstance(dim, tuple | list) else counted[0], "keepdim": keep}
    node.args = (image,)
