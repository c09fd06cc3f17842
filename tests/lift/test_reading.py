"""Tracing: what fx alone can't, and clear words where nothing can."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from i3dconvert import inflate
from i3dconvert.errors import LiftError
from i3dconvert.lift.counterparts import is_layer
from i3dconvert.lift.reading import read
from i3dconvert.verification import Settings, verify

QUICK = Settings(frames=3, size=16)


class Body(nn.Module):
    """A convolution, then whatever a test puts in `then`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.conv(x))

    def then(self, x: Tensor) -> Tensor:
        return x


def test_branches_loops_and_assertions_on_shapes() -> None:
    class Net(Body):
        def then(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            assert channels == 8
            assert height >= 4
            for _ in range(height // 8):
                x = x * 2
            if width % 2:
                raise AssertionError
            return x.reshape(batch, channels, height * width).mean(-1)

    net = Net()
    assert verify(net, inflate(net, size=16), QUICK).passed


def test_factories_given_sizes_of_the_graph() -> None:
    class Net(Body):
        def then(self, x: Tensor) -> Tensor:
            ramp = torch.arange(x.shape[3], device=x.device) + torch.zeros(x.shape[3], device=x.device)
            return (x * torch.cat([ramp[:1] + 1, ramp[1:]])).flatten(1)

    net = Net()
    assert verify(net, inflate(net, size=16), QUICK).passed


def test_optional_arguments_keep_their_defaults() -> None:
    class Net(Body):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
            return super().forward(x if mask is None else x * mask) * scale

    net = Net()
    assert verify(net, inflate(net, size=16), QUICK).passed


def test_a_branch_on_the_data_is_refused_by_name() -> None:
    class Net(Body):
        def then(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(LiftError, match="depends on the data"):
        inflate(Net(), size=16)


def test_an_operation_that_fails_is_named_with_its_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(7, -1, 11)

    with pytest.raises(LiftError, match=r"view in 1"):
        inflate(nn.Sequential(nn.Conv2d(3, 4, 3), Inner()), size=16)


def test_functional_dropout_follows_the_mode_of_the_result() -> None:
    class Net(Body):
        def then(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    network = inflate(Net().eval(), size=16)
    clip = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(network(clip), network(clip))
    network.train()
    assert not torch.equal(network(clip), network(clip))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).train()
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    read(model, is_layer, (3, 16, 16))
    assert model.training
    assert all(p is before[n][0] and torch.equal(p, before[n][1]) for n, p in model.named_parameters())


@fx.wrap
def nothing_for(x: Tensor) -> Tensor | None:
    """Kept whole by fx, as timm's NaFlexViT keeps the function that makes its mask, which without patches is None."""
    return None if len(x.shape) == 4 else x


def test_a_function_kept_whole_may_give_nothing() -> None:
    class Net(Body):
        def then(self, x: Tensor) -> Tensor:
            mask = nothing_for(x)
            return x if mask is None else x * mask

    model = Net().eval()
    assert verify(model, inflate(model, size=16), QUICK).passed
