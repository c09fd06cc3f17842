"""Convolutions computed by functions with a kernel that belongs to the network."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from i3dconvert.errors import RecipeError
from i3dconvert.lift import layout
from i3dconvert.lift.canonical import function_name
from i3dconvert.lift.computed import Called, ComputedConv3d, called, parameter_of
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
        weight = parameter_of(call.kernel) if call is not None else None
        self.functions[node] = reason = self.why_flat(call, weight)
        if reason or call is None or weight is None:
            return self.on_frames(node)
        entry, key = counterpart(call.layer), str(weight.target)
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
        if self.fillings.setdefault(key, filling) != filling:
            self.functions[node] = f"another call inflates its kernel {key} differently"
            return self.on_frames(node)
        self.layers[name] = Layer(name, node.name, geometry, temporal)
        self.modules[function_name(node)] = ComputedConv3d(layer, filling, self.style.init)
        taps = self.graph.get_attr(key)
        facts_of(taps).update({"plain": True, "taps": True})
        kernel, bias = (self.env[n][0] if isinstance(n, fx.Node) else n for n in (call.kernel, call.bias))
        beside = (taps, None if weight is call.kernel else kernel, bias)

        def layer_on(clip: fx.Node) -> fx.Node:
            new = self.graph.create_node("call_module", function_name(node), (clip, *beside), {}, node.name)
            facts_of(new).update({"temporal": temporal, "layer": name})
            return new

        return self.on_clips(call.image, layer_on)

    def why_flat(self, call: Called | None, weight: fx.Node | None) -> str:
        """Return why a function's convolution stays 2D; empty if it can be 3D."""
        if call is None:
            return "its arguments are computed in the forward pass"
        if not self.holds_images(call.image) or self.layout_of(call.image) is Layout.PLAIN:
            return "its input is not an image"
        if weight is None:
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
