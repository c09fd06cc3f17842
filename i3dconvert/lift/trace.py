"""Trace a 2D network into a graph whose every value is known by shape.

`torch.fx` alone stops at the first branch on a shape. Here each traced value carries a tensor on the meta device (no
memory, no arithmetic), so that branches, loops and assertions on shapes are decided as they would be at run time, while
the sizes that reach an operation stay in the graph as values.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace

from i3dconvert.errors import LiftError, first_line

BATCH = 13
"""The batch size of the example input: unlikely enough as any other size to tell the batch axis by."""

_FACTORIES = (
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"),
    *("finfo", "iinfo"),  # of a dtype that is a value of the graph
)
_SAME_ALWAYS = ("ndim", "is_cuda", "is_quantized", "requires_grad", "layout")
_SIZES = ("shape", "size", "dim", "numel", "stride")
"""What is the same of a parameter whatever the input is."""
_UNWRAPPED = ("shifted_window_attention", "LocallyGroupedAttn")
"""Functions and modules that their library keeps whole for its own tracing, and that hold an attention."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def rows(value: Any) -> int:
    """How many rows a tensor has for each image of the batch; 0 where its first axis is not of the batch."""
    return len(value) // BATCH if isinstance(value, Tensor) and value.dim() and len(value) % BATCH == 0 else 0


@dataclass(frozen=True)
class Traced:
    """A graph, and the weightless copy of the network that its targets name."""

    graph: fx.Graph
    root: nn.Module


def trace(model: nn.Module, is_layer: Callable[[nn.Module], bool], shape: tuple[int, int, int]) -> Traced:
    """Trace `model` in eval mode on an input `(BATCH, *shape)`, shape being `(C, H, W)`.

    `node.meta["value"]` holds each value (tensors on the meta device), `node.meta["scope"]` the module it was made in.
    Modules for which `is_layer` holds, those of `torch.nn`, and those without weights that behave differently in
    training stay whole. The model itself is left as it was. Raises `LiftError` naming operation and module, and the
    part of the network that can be traced where the whole can't (the backbone of a detector).
    """
    try:
        return _traced(model, is_layer, shape)
    except LiftError as error:
        part = _traceable_part(model, is_layer, shape)
        hint = f"; its part {part!r} can be inflated alone: inflate(model.{part})" if part else ""
        raise LiftError(f"{error}{hint}") from error.__cause__


def _traced(model: nn.Module, is_layer: Callable[[nn.Module], bool], shape: tuple[int, int, int]) -> Traced:
    skeleton = _on_meta(model)
    skeleton.eval()
    try:
        return Traced(_Tracer(is_layer, shape).trace(skeleton), skeleton)
    except LiftError:
        raise
    except Exception as error:
        raise LiftError(f"can't trace {type(model).__name__}: {reason(error)}") from error


def _traceable_part(model: nn.Module, is_layer: Callable[[nn.Module], bool], shape: tuple[int, int, int]) -> str | None:
    """The largest direct part with layers of its own that takes an image and can be traced."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name in sorted(parts, key=parts.__getitem__, reverse=True):
        part = model.get_submodule(name)
        with suppress(LiftError):
            if not is_layer(part) and any(map(is_layer, part.modules())):
                _traced(part, is_layer, shape)
                return name
    return None


def _on_meta(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): _meta(tensor) for tensor in tensors}
    return copy.deepcopy(model, memo)


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class _Value(fx.Proxy):
    """A proxy that knows what it stands for; where Python needs a plain number or truth value, it gives it."""

    @property
    def _known(self) -> Any:
        return self.node.meta["value"]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """`isinstance` and what stands on it (`torch.is_tensor`, `torch.jit.isinstance`, einops) ask for this."""
        return type(self._known)

    def _plain(self, kind: str) -> Any:
        if isinstance(self._known, Tensor):
            raise LiftError(
                f"{place(self.node)}: the network needs the {kind} of {self.node.name!r}, which depends on the data"
            )
        return self._known

    def __bool__(self) -> bool:
        return bool(self._plain("truth"))

    def __int__(self) -> int:
        return int(self._plain("number"))

    def __index__(self) -> int:
        return int(self._plain("number"))

    def __float__(self) -> float:
        return float(self._plain("number"))

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, i) for i in range(len(self._known)))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __contains__(self, item: Any) -> bool:
        return item in self._plain("members")

    def __hash__(self) -> int:
        return id(self)

    def __format__(self, spec: str) -> str:
        return self.node.name

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._known, name)
        if name in _SAME_ALWAYS or (name in _SIZES and self.node.op == "get_attr"):
            return value
        attribute = fx.proxy.Attribute(self, name)
        return attribute if callable(value) else self.tracer.create_proxy("call_function", getattr, (self, name), {})


class _Tracer(fx.Tracer):
    def __init__(self, is_layer: Callable[[nn.Module], bool], shape: tuple[int, int, int]) -> None:
        functions, modules = _untraceable_in_timm()
        super().__init__(autowrap_functions=functions)
        self._is_layer, self._shape, self._opaque = is_layer, shape, modules
        self._evaluating = False

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        self._names = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}
        with ExitStack() as stack:
            for name in _FACTORIES:
                stack.enter_context(patch.object(torch, name, self._traceable(getattr(torch, name))))
            wrapped = _symbolic_trace._wrapped_fns_to_patch
            kept = {key: value for key, value in wrapped.items() if key[1] not in _UNWRAPPED}
            stack.enter_context(patch.object(_symbolic_trace, "_wrapped_fns_to_patch", kept))
            stack.enter_context(patch.object(_symbolic_trace, "_create_wrapped_func", _wrapped))
            for namespace in _code_of(root):
                stack.enter_context(patch.dict(namespace, type=_TypeOf))
            if (einops := sys.modules.get("einops.einops")) is not None:  # its cache would keep values of one trace
                uncached = einops._reconstruct_from_shape_uncached
                stack.enter_context(patch.object(einops, "_reconstruct_from_shape", uncached))
            return super().trace(root)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One image input; every further argument keeps its default. `module.training` becomes a value of the graph."""
        image = self.create_proxy("placeholder", "clip", (), {})
        self._replace_training(self.root, "", self.create_proxy("get_attr", "training", (), {}))
        return root_fn, [self.root, image]

    def _replace_training(self, module: nn.Module, name: str, flag: fx.Proxy) -> None:
        if name and self.is_leaf_module(module, name):
            return
        vars(module)["training"] = flag
        for child_name, child in module.named_children():
            self._replace_training(child, f"{name}.{child_name}".lstrip("."), flag)

    def _traceable(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._evaluating and _holds_proxy((args, kwargs)):
                return self.create_proxy("call_function", factory, args, kwargs)
            return factory(*args, **kwargs)

        return call

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._is_layer(m):
            return True
        if type(m).__module__.startswith("torch.nn") and not isinstance(m, _CONTAINERS):
            return True
        holds_layers = any(self._is_layer(child) for child in m.modules())
        if type(m) in self._opaque and not holds_layers and type(m).__name__ not in _UNWRAPPED:
            return True
        forward = getattr(type(m).forward, "__code__", None)
        return (
            not any(True for _ in m.parameters())
            and not holds_layers
            and "training" in getattr(forward, "co_names", ())
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._evaluating or not self._is_part(m):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _is_part(self, module: nn.Module) -> bool:
        """Whether a module is of the network's tree; one without weights need not be."""
        try:
            self.path_of_module(module)
        except NameError:
            if any(True for _ in module.parameters()):
                raise LiftError(
                    f"{type(module).__name__} has weights and is called, but is no submodule of the network: "
                    "it stands in a list or a dict of Python's (nn.ModuleList and nn.ModuleDict register theirs)"
                ) from None
            return False
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A tensor of the network, read in its code, becomes a value of the graph."""
        name = self._names.get(id(attr_val))
        if self._evaluating or name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """A value of the graph first of all: to `isinstance` it is a tensor, a tuple, a number."""
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> Any:
        """None is None to the code that is traced, whatever it came through."""
        return None if node.meta["value"] is None else _Value(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        node.meta["scope"] = self.scope.module_path
        if kind != "output":
            node.meta["value"] = self._evaluate(node)
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            dtype = next((p.dtype for p in self.root.parameters() if p.is_floating_point()), None)
            return torch.empty(BATCH, *self._shape, device="meta", dtype=dtype)
        if node.target == "training":
            return False
        self._evaluating = True
        try:
            return self._compute(node)
        except Exception as error:
            raise LiftError(f"{place(node)}: {reason(error)}") from error
        finally:
            self._evaluating = False

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        args, kwargs = _constants_to_meta(args), _constants_to_meta(kwargs)
        with torch.no_grad():
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return _constants_to_meta(node.target(*args, **kwargs))


def _untraceable_in_timm() -> tuple[tuple[Callable[..., Any], ...], tuple[type, ...]]:
    """The functions and modules that timm itself registers as not to be traced through."""
    layers = sys.modules.get("timm.layers")
    if layers is None:
        return (), ()
    return tuple(layers.get_notrace_functions()), tuple(layers.get_notrace_modules())


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is not traced through, as `torch.fx.wrap` does it, but one that may give None."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = _symbolic_trace._find_proxy(args, kwargs)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call


class _OfTypes(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0].__class__ if len(args) == 1 else type(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)


class _TypeOf(metaclass=_OfTypes):
    """Stands for `type` in the code that is traced: `type(x)` is what `isinstance` takes a value for."""


def _code_of(root: nn.Module) -> Iterator[dict[str, Any]]:
    """The namespaces that the code of the network's own modules looks its names up in."""
    homes = {cls.__module__ for module in root.modules() for cls in type(module).__mro__}
    for home in homes - {"builtins"}:
        if not home.startswith("torch.") and home in sys.modules:
            yield vars(sys.modules[home])


def _holds_proxy(value: Any) -> bool:
    if issubclass(type(value), fx.Proxy):
        return True
    if isinstance(value, dict):
        return _holds_proxy(list(value.values()))
    return isinstance(value, tuple | list) and any(map(_holds_proxy, value))


def _constants_to_meta(value: Any) -> Any:
    """Tensors with memory without it; tuples whose items have names (`torch.max`) as they are."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, dict):
        return {key: _constants_to_meta(item) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, tuple) and type(value).__module__ != "torch.return_types"):
        return type(value)(map(_constants_to_meta, value))
    return value


def place(node: fx.Node) -> str:
    """Where in the network a node of its graph stands, for messages."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return f"{target} in {node.meta.get('scope') or 'the network itself'}"


def reason(error: Exception) -> str:
    """Why something failed, in one line; in our own words where the data says how many elements a result has."""
    if any(words in str(error) for words in ("register_meta", "meta tensor", "data-dependent")):
        return "what it gives depends on the data and not on shapes alone, which no graph can follow"
    return first_line(error)
