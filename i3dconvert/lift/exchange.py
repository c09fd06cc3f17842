"""Describe modules that replaced others since the network was inflated as data for a file, and rebuild them.

Layers of torch, and `Sequential`s of them, can be stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.errors import CheckpointError
from i3dconvert.lift.trainers import NoHead

OWN: Mapping[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(NoHead, nn.Identity, nn.Linear, nn.Flatten, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Softmax, nn.LogSoftmax),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    )
}
"""Layers that a file can store, by name: the arguments of their classes define them completely."""

HINTS: tuple[tuple[str, str], ...] = (
    ("peft.", "merge the adapters first: network = tuned.merge_and_unload()"),
    (
        "torch.nn.utils.parametriz",
        "remove it first: torch.nn.utils.parametrize.remove_parametrizations(module, name)",
    ),
    ("torch.distributed.", "gather the weights first, and load them into a network that is not sharded"),
    ("torchao.", "save the network before it is quantised"),
    ("torch.ao.", "save the network before it is quantised"),
)
"""Advice for modules of other libraries, by the beginning of their names."""

KEPT = "a file can store layers of torch.nn (Linear, Identity, Sequential), and heads of inflate(…, num_classes=)"

Forms = Mapping[str, Any]
"""Forms by module name: `{"Linear": {arguments}}`, `{"Sequential": [[name, form], …]}`."""


def marks(network: nn.Module) -> dict[str, str]:
    """Return a mark for each module, by name: its class, its representation, the shapes of its own tensors."""
    return {name: _mark(module) for name, module in network.named_modules(remove_duplicate=False)}


def exchanged(network: nn.Module, made: Mapping[str, str]) -> dict[str, Any]:
    """Return the forms of the modules that changed since the network was `made`; the values are its marks.

    Raises `CheckpointError`, naming what a file can't store.
    """
    found = dict(_exchanged(network, made, ""))
    there = {name for name, _ in network.named_modules(remove_duplicate=False)}
    gone = [name for name in made if name not in there and not _within(name, found)]
    if gone:
        raise CheckpointError(
            f"{gone[0]} was removed from the network, which a file can't store: put nn.Identity() in its place, or cut "
            "the 2D network and inflate that"
        )
    return found


def _exchanged(module: nn.Module, made: Mapping[str, str], name: str) -> Iterator[tuple[str, Any]]:
    if name not in made or made[name] != _mark(module):
        if not name:
            raise CheckpointError(_refusal(module, "the network itself"))
        yield name, form_of(module, name)
        return
    for key, child in module.named_children():
        yield from _exchanged(child, made, f"{name}.{key}".lstrip("."))


def form_of(module: nn.Module, name: str) -> Any:
    """Return a module as data; raises `CheckpointError` if it is not one of torch's."""
    if type(module) is nn.Sequential:
        return {"Sequential": [[key, form_of(child, f"{name}.{key}")] for key, child in module.named_children()]}
    cls = type(module)
    if OWN.get(cls.__name__) is cls:
        usual, given = _defaults(cls), {key: _argument(module, key) for key in _defaults(cls)}
        form = {cls.__name__: {key: value for key, value in given.items() if value != usual[key]}}
        if _mark(_built(form)) == _mark(module):
            return form
    raise CheckpointError(_refusal(module, name))


def put(network: nn.Module, forms: Forms) -> None:
    """Put modules without weights into the network as the forms say; raises `CheckpointError` for damaged ones."""
    for name, form in forms.items():
        try:
            network.set_submodule(name, _built(form).train(network.training))
        except Exception as error:  # noqa: BLE001 - classes of torch may raise anything for bad arguments
            raise CheckpointError(f"the file has a damaged module {name!r}: {error}") from None


def _built(form: Any) -> nn.Module:
    """Build the module of a form on the meta device, where its size takes no memory."""
    ((kind, arguments),) = form.items()
    if kind == "Sequential":
        module = nn.Sequential()
        for key, child in arguments:
            module.add_module(str(key), _built(child))
        return module
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    with torch.device("meta"):
        return OWN[kind](**plain)


def _defaults(cls: type[nn.Module]) -> dict[str, Any]:
    """Return the arguments that define a layer, with their defaults, which differ between versions of torch."""
    own = inspect.signature(cls).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: one.default for one in own if one.kind in kinds and one.name not in ("device", "dtype")}


def _argument(module: nn.Module, key: str) -> Any:
    """Return an argument with which a layer of torch was built."""
    value: Any = getattr(module, key, None)
    if key == "bias" and not isinstance(value, bool):
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _mark(module: nn.Module) -> str:
    cls = type(module)
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if tensor is not None}
    lists = isinstance(module, nn.ParameterDict | nn.ParameterList)  # they show their dtype, which may change
    says = module.extra_repr() if cls.__module__.startswith(("torch.nn.", "i3dconvert.")) and not lists else ""
    return f"{cls.__module__}.{cls.__qualname__}({says}) {shapes}"


def _within(name: str, found: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{other}.") for other in found)


def _refusal(module: nn.Module, name: str) -> str:
    """Return what a module is that no file can store, and what to do."""
    cls = type(module)
    home = f"{cls.__module__}.{cls.__qualname__}"
    own = OWN.get(cls.__name__) is cls
    what = f"a {cls.__name__} with foreign tensors" if own else f"a {home}"
    hints = (hint for start, hint in HINTS if home.startswith(start))
    hint = next(hints, "remove weight norm and the like first" if own else KEPT)
    return f"{name} is {what}, which a file can't store: {hint}"
