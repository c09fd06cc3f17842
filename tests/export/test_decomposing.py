"""The exporter's step that is left out: what becomes of operations in place, and when it is taken after all."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from i3dconvert.export.decomposing import renamed

ATEN = torch.ops.aten
KNOWN = {ATEN.add.Tensor, ATEN.mul.Tensor, ATEN.relu.default, ATEN.reshape.default, ATEN.view.default}


def residual(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    return y.reshape(-1).relu_() + 1


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    seen = y.view(-1)
    y += x
    return seen + 1


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).mul_(3)
    return y + 1


def of_the_input(x: Tensor) -> Tensor:
    return x.mul_(2) + x


def unknown(x: Tensor) -> Tensor:
    return x.cumsum(0)


@pytest.mark.parametrize(
    ("function", "left_out"),
    [
        (residual, True),
        (seen_through_a_view, False),
        (written_through_a_view, False),
        (of_the_input, False),
        (unknown, False),
    ],
)
def test_what_writes_into_memory_that_is_seen_elsewhere_is_left_to_torch(
    function: Callable[[Tensor], Tensor], left_out: bool
) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    program = torch.export.export(Network(), (torch.randn(3, 4),), strict=False)
    before = str(program.graph)
    assert renamed(program.graph, KNOWN) is left_out
    if not left_out:
        assert str(program.graph) == before
        return
    assert not any(getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in program.graph.nodes)
    program.graph_module.recompile()
    x = torch.randn(3, 4)
    assert torch.equal(program.module()(x), function(x.clone()))
