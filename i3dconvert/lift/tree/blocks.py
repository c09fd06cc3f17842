"""The modules of the tree: `Block`, which has code of its own, and `Chain`, a `Sequential` of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from i3dconvert.errors import LiftError
from i3dconvert.lift.forms import FRAMES, Form, clips_in, converted, enter, leave
from i3dconvert.lift.tree.calling import Tree, call, forms, kind, tree_in
from i3dconvert.lift.tree.code import Code


class Block(Tree):
    """What a module of the 2D network has become: its children under their names, and its code over clips."""

    promised: ClassVar[dict[str, Callable[[Any], Any]]] = {"code": lambda block: code_of(block)}
    """Attributes that give way to children of the same name."""

    def __init__(self, code: Code | None) -> None:
        nn.Module.__init__(self)
        self._i3d_code = code.compiled() if code is not None else None
        self._i3d_ready = False
        """Whether it has its children, so that what is promised can't take their names."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in type(self).promised and self.__dict__.get("_i3d_ready"):
                return type(self).promised[name](self)
            raise

    def _i3d_borders(self) -> tuple[list[Form] | None, Form]:
        """The forms of its inputs, those of its code's own need left out, and of what it gives."""
        code = self._i3d_code
        return (code.takes, code.gives) if code is not None else (None, None)

    def _i3d_beside(self) -> dict[str, Form]:
        """The forms of what its code uses beside its inputs, by their names."""
        code = self._i3d_code
        return code.beside if code is not None else {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the 2D module computes, over clips `(N, C, T, H, W)`; what else it takes and gives is `(N, T, …)`."""
        if self._i3d_code is None:
            raise LiftError(
                f"{type(self).__name__} can't be called by itself: its code is part of that of the module around it"
            )
        return self._i3d_code.run(self, args, kwargs)


class Chain(Tree, nn.Sequential):
    """A `Sequential` of the tree: whatever children it has now, one after the other."""

    def __init__(self, *modules: Any) -> None:
        nn.Sequential.__init__(self, *modules)
        self._i3d_takes: Form = None
        self._i3d_gives: Form = None
        self._i3d_facts: dict[str, dict[str, Any]] = {}

    def _i3d_borders(self) -> tuple[list[Form] | None, Form]:
        """The forms of what it takes and gives; those of its children where it is not called by the network."""
        path = self._i3d_path()
        if path[0] is None:
            return None, path[-1]
        return [path[0]], path[-1] if self._i3d_gives is None else self._i3d_gives

    def _i3d_path(self) -> list[Form]:
        """The form of the value in front of each child, and behind the last."""
        found = [self._i3d_takes if self._i3d_takes is not None else self._i3d_first()]
        for child in self:
            _, given = forms(child, found[-1:])
            found.append(given)
        return found

    def _i3d_first(self) -> Form:
        """What the first child takes that wants a form of its own."""
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
        """One child after the other, each given what it takes."""
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
    """The Python code of a module of the tree."""
    code = module.__dict__.get("_i3d_code")
    return code.text if code is not None else ""
