"""Kernels outside lifted calls: tied, of layers that do not run, or read by the network's code."""

from __future__ import annotations

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.counterparts import counterpart_of_base
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.rewriting import Rewriting
from i3dconvert.recipes import Temporal

Ties = tuple[tuple[str, ...], ...]
_OF_ANY_RANK = ("dtype", "device")
"""Attributes of a kernel that are the same in 2D and 3D."""


class Beside(Rewriting):
    """Kernels outside lifted calls: tied, of layers that do not run, or read by the network's code."""

    ties: Ties

    def tie(self) -> None:
        """Inflate a kernel under all of its names if its layers are inflated alike."""
        for names in self.ties:
            shared = {self.fillings[name] for name in names if name in self.fillings}
            free = [name for name in names if name.rpartition(".")[0] not in self.modules]
            if len(shared) == 1:
                self.fillings |= dict.fromkeys(free, shared.pop())

    def inflate_unreached(self) -> None:
        """Inflate layers outside the forward pass by the recipe, too, so that a state dict fits them."""
        reached = {call.name for call in self.traced.calls} | set(self.modules)
        for name, module in self.root.named_modules():
            entry = counterpart_of_base(module) if name not in reached else None
            if entry is None:
                continue
            try:
                geometry = entry.geometry(module) if entry.geometry is not None else None
                temporal = self.recipe.temporal(name, geometry) if geometry is not None else Temporal()
                layer, fillings = entry.lift(module, temporal, self.style), entry.fillings(module, temporal, self.style)
            except RecipeError:
                continue
            named = {f"{name}.{key}": filling.of(name) for key, filling in fillings.items()}
            if all(self.fillings.get(key, filling) == filling for key, filling in named.items()):
                self.modules[name] = layer
                self.fillings |= named

    def read_in_2d(self) -> None:
        """Replace an inflated kernel by its 2D kernel where the network's own code reads it."""
        for node in self.graph.nodes:
            filling = self.fillings.get(str(node.target)) if node.op == "get_attr" else None
            if facts_of(node).get("taps") or filling is None or not filling.is_kernel:
                continue
            users = [user for user in node.users if user.target is not getattr or user.args[1] not in _OF_ANY_RANK]
            if users:
                with self.graph.inserting_after(node):
                    kernel = self.plain(self.call(layout.sum_of_taps, node, filling.copies))
                facts_of(kernel)["call"] = facts_of(node)["call"]
                for user in users:
                    user.replace_input_with(node, kernel)
