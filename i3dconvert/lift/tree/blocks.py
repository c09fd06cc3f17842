"""The modules of the tree: `Block`, with its own code, and `Chain`, a `Sequential` of modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from i3dconvert.errors import I3DWarning, LiftError
from i3dconvert.lift.facts import Facts
from i3dconvert.lift.forms import FRAMES, Form, clips_in, converted, enter, leave
from i3dconvert.lift.tree.calling import Tree, call, forms, kind, tree_in
from i3dconvert.lift.tree.code import Code


class Block(Tree):
    """The 3D form of a 2D module: its children under their names, and its code for clips."""

    promised: ClassVar[dict[str, Callable[[Any], Any]]] = {"code": lambda block: code_of(block)}
    """Attributes that children of the same name override."""

    def __init__(self, code: Code | None) -> None:
        nn.Module.__init__(self)
        self._i3d_code = code.compiled() if code is not None else None
        self._i3d_ready = False
        """Whether its children are set, so that promised attributes can't take their names."""
        self._i3d_fixed: dict[str, Any] = {}
        """The 2D module's attributes that its code depends on."""
        self._i3d_lists: dict[str, tuple[str, ...]] = {}
        """The names of the modules in each list whose modules its code calls."""
        self._i3d_fused: dict[str, tuple[type[nn.Module], ...]] = {}
        """The classes that can stand for each module that one fused operation computes."""

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = self.__dict__.get("_i3d_fixed", {})
        if name in fixed and (type(value) is not type(fixed[name]) or value != fixed[name]):
            raise LiftError(
                f"{name} = {fixed[name]!r} is part of the code of this {type(self).__name__}: set it in the 2D "
                "network, and inflate that"
            )
        super().__setattr__(name, value)

    def _i3d_settled(self, fixed: dict[str, Any]) -> None:
        """Note, once its children are set, what its code depends on."""
        self._i3d_fixed, self._i3d_ready = fixed, True

    def _i3d_list(self) -> None:
        """Note, once the network is complete, the modules of each list whose modules its code calls."""
        nodes = self._i3d_code.graph.nodes if self._i3d_code is not None else ()
        for path in {str(node.target).rpartition(".")[0] for node in nodes if node.op == "call_module"}:
            owner = self.get_submodule(path)
            if isinstance(owner, nn.ModuleList | nn.ModuleDict) or (owner is self and isinstance(owner, nn.Sequential)):
                self._i3d_lists[path] = tuple(owner._modules)

    def _i3d_fuse(self, path: str) -> None:
        """Note that one fused operation computes what a module below it computes in 2D."""
        module = self.get_submodule(path)
        drops = isinstance(module, nn.Dropout)
        self._i3d_fused[path] = (nn.Dropout, nn.Identity) if drops else (type(module),)

    def _i3d_check(self) -> None:
        """Raise `LiftError` if a module was exchanged that its code can't follow; warn of hooks that do not run."""
        for path, classes in self.__dict__.get("_i3d_fused", {}).items():
            module = _below(self, path)
            if not isinstance(module, classes):
                raise LiftError(
                    f"{path} of {type(self).__name__} can't be a {type(module).__name__}: it is part of one fused "
                    "attention; change the 2D network, and inflate that"
                )
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                warnings.warn(
                    f"hooks on {path} of {type(self).__name__} do not run: it is part of one fused attention, which "
                    "has no weights to show; hook the attention, or inflate with recipe 'c2d'",
                    I3DWarning,
                    stacklevel=2,
                )
        for path, names in self.__dict__.get("_i3d_lists", {}).items():
            owner = _below(self, path)
            if tuple(owner._modules) != names:
                raise LiftError(
                    f"{path and f'{path} of '}{type(self).__name__} has {len(owner._modules)} modules, but its code "
                    f"calls {len(names)}: "
                    "replace modules by others (nn.Identity(), nn.Sequential(block, more)), or change the 2D network "
                    "and inflate that"
                )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in type(self).promised and self.__dict__.get("_i3d_ready"):
                return type(self).promised[name](self)
            raise

    def _i3d_borders(self) -> tuple[list[Form] | None, Form]:
        """Return the forms of its inputs, without those that only its code needs, and of its output."""
        code = self._i3d_code
        return (code.takes, code.gives) if code is not None else (None, None)

    def _i3d_beside(self) -> dict[str, Form]:
        """Return the forms of the values that its code uses besides its inputs, by name."""
        code = self._i3d_code
        return code.beside if code is not None else {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the 2D module computes, for clips `(N, C, T, H, W)`; other values are `(N, T, …)`."""
        if self._i3d_code is None:
            raise LiftError(
                f"{type(self).__name__} can't be called on its own: its code is part of the enclosing module's"
            )
        self._i3d_check()
        return self._i3d_code.run(self, args, kwargs)


def _below(module: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        module = getattr(module, part, None)
    return module


class OfSequential(nn.Sequential):
    """A block that is a `Sequential` in 2D, and has code that is not a chain of its modules."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_no_slice(self, index))


class OfList(nn.ModuleList):
    """A block that is a `ModuleList` in 2D, and has code."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_no_slice(self, index))


def _no_slice(module: nn.Module, index: Any) -> Any:
    if isinstance(index, slice):
        raise LiftError(
            f"this {type(module).__name__} can't be sliced, as its code calls all of its modules: slice the 2D "
            "network's, and inflate that"
        )
    return index


class Chain(Tree, nn.Sequential):
    """A `Sequential` of the tree: calls its current children in order."""

    def __init__(self, *modules: Any) -> None:
        nn.Sequential.__init__(self, *modules)
        self._i3d_takes: Form = None
        self._i3d_gives: Form = None
        self._i3d_facts: dict[str, Facts] = {}

    def _i3d_borders(self) -> tuple[list[Form] | None, Form]:
        """Return the forms of its input and output; those of its children if the network does not call it."""
        path = self._i3d_path()
        if path[0] is None:
            return None, path[-1]
        return [path[0]], path[-1] if self._i3d_gives is None else self._i3d_gives

    def _i3d_path(self) -> list[Form]:
        """Return the form of the value before each child, and after the last."""
        found = [self._i3d_takes if self._i3d_takes is not None else self._i3d_first()]
        for child in self:
            _, given = forms(child, found[-1:])
            found.append(given)
        return found

    def _i3d_first(self) -> Form:
        """Return the input form of the first child that requires one."""
        for child in self:
            is_a = kind(child)
            if is_a == "tree":
                wanted, _ = tree_in(child)._i3d_borders()
                return wanted[0] if wanted else None
            if is_a != "given":
                return "clip" if is_a == "clip" else FRAMES
        return None

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(index, slice) and isinstance(found, Chain):
            path = self._i3d_path()
            places = range(len(self))[index]
            if len(places):
                found._i3d_takes, found._i3d_gives = path[places[0]], path[places[-1] + 1]
            found._i3d_facts = self._i3d_facts
        return found

    def forward(self, input: Any) -> Any:
        """Call the children in order, each with the form that it takes."""
        path = self._i3d_path()
        first = path[0] if path[0] is not None else "clip" if isinstance(input, Tensor) and input.dim() == 5 else FRAMES
        clips = clips_in(input, first)
        value, form = enter(input, first), first
        for child in self:
            _, given = forms(child, [form])
            value, form = call(child, clips, value, takes=[form], gives=given), given
        wanted = form if self._i3d_gives is None else self._i3d_gives
        return leave(converted(value, form, wanted, clips), wanted, clips)


def code_of(module: nn.Module) -> str:
    """Return the Python code of a module in the tree."""
    code = module.__dict__.get("_i3d_code")
    return code.text if code is not None else ""
