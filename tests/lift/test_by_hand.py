"""What a trainer changes by hand acts as in 2D, or is refused by name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.utils import _apply_to_tensors
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from i3dconvert import inflate
from i3dconvert.errors import CheckpointError, LiftError

SIZE = 8


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor, self.note = 0.5, "not read"

    def forward(self, value: Tensor) -> Tensor:
        return value * self.scale()

    def scale(self) -> float:
        return self.factor


class Net(nn.Module):
    """A loop over a list, attention with a decision on a size, and a head that writes into its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2)])
        self.scaled = Scaled()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, 5))

    def forward(self, image: Tensor) -> Tensor:
        value = self.stem(image)
        for block in self.blocks:
            value = value + block(value)
        tokens = self.scaled(value).flatten(2).transpose(1, 2)
        if tokens.shape[1] % 2:
            tokens = tokens[:, 1:]
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        dropped = functional.dropout(tokens, self.dropout.p, self.training)
        pooled = torch.flatten(self.pool(dropped.transpose(1, 2).reshape(value.shape)), 1)
        return self.classifier(pooled)


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Net().eval()
    return model, inflate(model, "joint", size=SIZE)


@pytest.fixture
def network(made: tuple[nn.Module, Any]) -> Any:
    return copy.deepcopy(made[1])


def clip(frames: int = 3) -> Tensor:
    return torch.randn(2, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_a_head_that_writes_in_place_is_a_sequential(made: tuple[nn.Module, Any], network: Any) -> None:
    """As in torchvision's EfficientNet: its dropout writes into a view of the pooled values."""
    model = copy.deepcopy(made[0])
    assert isinstance(network.classifier, nn.Sequential)
    assert isinstance(network.classifier[0], nn.Dropout)
    new = nn.Linear(4, 3)
    for net in (model, network):
        net.classifier[1] = new
        net.classifier.insert(1, nn.Tanh())
    image = clip(1)
    assert torch.allclose(network(image.expand(-1, -1, 3, -1, -1)), model(image[:, :, 0]), atol=1e-6)


def longer(network: Any) -> None:
    network.blocks.append(copy.deepcopy(network.blocks[0]))


def shorter(network: Any) -> None:
    network.blocks = network.blocks[:1]


def without(network: Any) -> None:
    network.stem = None


def deleted(network: Any) -> None:
    del network.scaled


@pytest.mark.parametrize(
    ("change", "says"),
    [(longer, "has 3 modules"), (shorter, "has 1 modules"), (without, "stem was rem"), (deleted, "scaled was rem")],
)
def test_modules_that_the_code_does_not_call_or_miss(change: Callable[[Any], None], says: str, network: Any) -> None:
    change(network)
    for use in (network, lambda clip: network.frames_left(3)):
        with pytest.raises(LiftError, match=says):
            use(clip())


def test_attributes_that_the_code_has_as_constants(network: Any) -> None:
    with pytest.raises(LiftError, match=r"factor = 0\.5 is part of the code of this Scaled"):
        network.scaled.factor = 2.0
    with pytest.raises(LiftError, match="is part of the code of this Dropout"):  # read by the code, and not called
        network.dropout.p = 0.5
    assert isinstance(network.dropout, nn.Dropout)
    network.classifier[0].p = 0.9  # called, so it acts
    network.scaled.factor = 0.5
    network.scaled.note = "is set"
    assert copy.deepcopy(network).scaled.note == "is set"


def test_the_2d_state_dict_is_refused_in_a_sentence(made: tuple[nn.Module, Any], network: Any) -> None:
    with pytest.raises(CheckpointError, match="a state dict of the 2D network"):
        network.load_state_dict(made[0].state_dict())
    network.load_state_dict(made[1].state_dict())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_attention_and_decisions_on_sizes_are_traced(network: Any) -> None:
    """By torch.jit, and by torch.fx for torchvision's feature extractor."""
    scores = network(clip())
    assert torch.allclose(torch.jit.trace(network, clip())(clip()), scores, atol=1e-6)
    found = create_feature_extractor(network, {"stem": "maps", "classifier": "scores"})(clip())
    assert torch.allclose(found["scores"].mean(1), scores, atol=1e-6)
    assert found["maps"].shape == (2, 4, 3, SIZE, SIZE)


class Classifier(nn.Module):
    """With the call of transformers' image classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, SIZE)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(pixel_values).flatten(1), "beside": pixel_values}


def test_outputs_by_attribute_and_place() -> None:
    network = inflate(Classifier(), size=SIZE)
    output = network(pixel_values=clip(), labels=torch.tensor([0, 1]))
    assert output[0] is output.loss is output["loss"]
    assert output[1:] == (output.logits, output.beside)
    assert pickle.loads(pickle.dumps(output)).keys() == output.keys()
    assert _apply_to_tensors(torch.clone, output).logits.shape == (2, 5)  # as FSDP does
    with pytest.raises(AttributeError, match="the outputs are loss, logits, beside"):
        output.hidden_states  # noqa: B018
    assert torch.func.vmap(network)(clip()[None]).logits.shape == (1, 2, 5)


class OnePixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other, self.fc = (
            nn.Conv2d(3, 8, 4),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).transpose(2, 3)
        y = functional.softmax(y.flatten(2), 1).view_as(y)
        return self.fc(self.other(y).mean((2, 3)))


class ForImages(nn.Module):
    """A network with the call of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> dict[str, Tensor]:
        maps = self.conv(pixel_values)
        found = {"logits": self.fc(maps.mean((2, 3)))}
        return found | ({"hidden_states": maps} if output_hidden_states else {})


def test_options_of_transformers_act_or_are_refused_by_name() -> None:
    model, clip = ForImages().eval(), torch.randn(2, 3, 4, 16, 16)
    network = inflate(model, size=16)
    scores = network(pixel_values=clip).logits
    off = {"output_hidden_states": False, "output_attentions": None, "interpolate_pos_encoding": False}
    assert torch.equal(network(pixel_values=clip, return_dict=True, **off).logits, scores)
    loss, logits = network(pixel_values=clip, labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.shape == ()
    assert torch.equal(logits, scores)
    with pytest.raises(LiftError, match=r"inflate\(model, constants={'output_hidden_states': True}\)"):
        network(pixel_values=clip, output_hidden_states=True)
    with pytest.raises(LiftError, match="attention_mask is not part"):
        network(pixel_values=clip, attention_mask=torch.ones(2))
    more = inflate(model, size=16, constants={"output_hidden_states": True})
    assert more(pixel_values=clip, output_hidden_states=True).hidden_states.shape == (2, 4, 4, 14, 14)
    assert list(more(pixel_values=clip, output_hidden_states=False)) == ["logits"]


def test_gradients_of_batch_norm_on_maps_of_one_pixel() -> None:
    torch.manual_seed(0)
    model = OnePixel().double()
    network = inflate(model, "c2d", size=4)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for one, given in ((model, images), (network, images.unsqueeze(2).expand(-1, -1, 4, -1, -1))):
        one.eval()
        functional.cross_entropy(one(given), torch.tensor([1, 3])).backward()
    for key in ("norm.weight", "norm.bias", "other.weight", "other.bias", "conv.bias"):
        assert torch.allclose(model.get_parameter(key).grad, network.get_parameter(key).grad, rtol=1e-9, atol=1e-15), (
            key
        )
