"""Convolutions computed by functions with a kernel that belongs to the network."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.canonical import function_name
from i3dconvert.lift.computed import Called, ComputedConv3d, Held, called, is_fixed, parameter_of
from i3dconvert.lift.counterparts import counterpart
from i3dconvert.lift.facts import facts_of
from i3dconvert.lift.layout import Layout
from i3dconvert.lift.over_rows import OverRows
from i3dconvert.lift.rewriting import Layer, New
from i3dconvert.recipes import Geometry


class Functions(OverRows):
    """Convolutions computed by functions with a kernel that belongs to the network."""

    functions: dict[fx.Node, str]
    """For each of these convolutions, the reason why it stays 2D; empty if it becomes 3D."""

    def convolution(self, node: fx.Node) -> New:
        """Lift a function's convolution, or keep it 2D with a reason."""
        call = called(node)
        held = parameter_of(call.kernel) if call is not None else None
        self.functions[node] = reason = self.why_flat(call, held)
        if reason or call is None:
            return self.on_frames(node)
        entry = counterpart(call.layer)
        assert entry is not None
        assert entry.geometry is not None
        scope = str(facts_of(node)["scope"])
        name = scope if scope and scope not in self.layers else function_name(node)
        geometry = padded_before(entry.geometry(call.layer), call.image)
        temporal, style = self.recipe.temporal(name, geometry), replace(self.style, conv="3d")
        try:
            layer = entry.lift(call.layer, temporal, style)
            filling = entry.fillings(call.layer, temporal, style)["weight"]
        except RecipeError as error:
            raise self.misfit(name, str(error)) from None
        key = str(held.tensor.target) if held is not None else ""
        if held is not None and self.fillings.setdefault(key, filling) != filling:
            self.functions[node] = f"another call inflates its kernel {key} differently"
            return self.on_frames(node)
        self.layers[name] = Layer(name, node.name, geometry, temporal)
        self.modules[function_name(node)] = ComputedConv3d(layer, filling, self.style.init)
        kernel, bias = (self.env[n][0] if isinstance(n, fx.Node) else n for n in (call.kernel, call.bias))
        whole = held is not None and call.kernel in (held.tensor, *held.parts)
        beside = (None if held is None else self.taps(held), None if whole else kernel, bias)

        def layer_on(clip: fx.Node) -> fx.Node:
            new = self.graph.create_node("call_module", function_name(node), (clip, *beside), {}, node.name)
            return self.along_time(new, temporal, name)

        return self.on_clips(call.image, layer_on)

    def taps(self, held: Held) -> fx.Node:
        """Return a kernel with its temporal axis, or the part of its channels that a convolution uses."""
        taps = self.plain(self.graph.get_attr(str(held.tensor.target)))
        facts_of(taps)["taps"] = True
        for part in held.parts:
            _, *rest = part.args
            if layout.operation(part) == "getitem" and isinstance(rest[0], tuple):
                rest = [rest[0][:2]]
            taps = self.plain(self.graph.create_node(part.op, part.target, (taps, *rest), dict(part.kwargs)))
        return taps

    def why_flat(self, call: Called | None, held: Held | None) -> str:
        """Return why a function's convolution stays 2D; empty if it can be 3D."""
        if call is None:
            return "its arguments are computed in the forward pass"
        if not self.holds_images(call.image) or self.layout_of(call.image) is Layout.PLAIN:
            return "its input is not an image"
        if held is None and not is_fixed(call.kernel):
            return "no tensor of the network has the shape of its kernel, which is computed in the forward pass"
        return ""


def padded_before(geometry: Geometry, image: fx.Node) -> Geometry:
    """Return a layer's geometry, including the padding by a separate operation before it."""
    pads = layout.argument(image, "pad", 1, ()) if layout.operation(image) == "pad" else facts_of(image).get("pads", ())
    if geometry.padding is None or len(pads) != 4:
        return geometry
    if not all(type(pad) is int for pad in pads[2:]):
        return replace(geometry, padding=None)
    return replace(geometry, outside=(max(pads[2], 0), max(pads[3], 0)))
