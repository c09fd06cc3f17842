"""The trainers that people use, on a lifted network and on its 2D network, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from i3dconvert import frames_left, inflate
from i3dconvert.comparison.forward import relative_error
from tests.outside.processes import WAYS, losses, train

SIZE, CLASSES = 64, 5
VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 16}
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}

Build = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Build, str]] = {
    "torchvision resnet": (lambda: models.resnet18(num_classes=CLASSES), "uniform"),
    "torchvision convnext": (
        lambda: models.ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=CLASSES),
        "uniform",
    ),
    "torchvision swin": (
        lambda: models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=CLASSES),
        "joint",
    ),
    "timm resnet": (lambda: timm.create_model("resnet10t", num_classes=CLASSES), "uniform"),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=3, num_classes=CLASSES),
        "joint",
    ),
    "timm swin": (
        lambda: timm.models.SwinTransformer(img_size=SIZE, window_size=4, num_classes=CLASSES, **SWIN),
        "joint",
    ),
    "timm convnext": (lambda: timm.create_model("convnext_atto", conv_mlp=False, num_classes=CLASSES), "uniform"),
    "hf vit": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**VIT, image_size=SIZE, num_labels=CLASSES)
        ),
        "joint",
    ),
    "hf resnet": (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
        ),
        "uniform",
    ),
}
OF_TIMM = [name for name in NETWORKS if name.startswith("timm")]
OF_HF = [name for name in NETWORKS if name.startswith("hf")]


@cache
def made(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    build, recipe = NETWORKS[name]
    model = build().eval()
    return model, inflate(model, recipe, "mean", size=SIZE)


def pair(name: str) -> tuple[Any, Any]:
    """A 2D network and the 3D one, in eval mode, to do with what one likes."""
    return copy.deepcopy(made(name))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def still(image: Tensor, frames: int = 3) -> Tensor:
    return image.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()


def moving(count: int = 2, frames: int = 3) -> Tensor:
    return torch.randn(count, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# Transformers' Trainer, accelerate, Lightning.


def arguments(folder: Path) -> transformers.TrainingArguments:
    options: dict[str, Any] = {"max_steps": 2, "learning_rate": 0.01, "logging_steps": 1, "report_to": []}
    return transformers.TrainingArguments(
        str(folder), use_cpu=True, optim="sgd", lr_scheduler_type="constant", **options
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_parameters_decay(name: str, tmp_path: Path) -> None:
    decayed = [set(transformers.Trainer(net, arguments(tmp_path)).get_decay_parameter_names(net)) for net in pair(name)]
    assert decayed[0] == decayed[1]
    assert 0 < len(decayed[0]) < len(list(made(name)[0].parameters()))


class Rows(Dataset[dict[str, Tensor]]):
    """What a collator of transformers takes."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.values[index], "labels": torch.tensor(index), "beside": torch.zeros(1)}


@pytest.mark.parametrize("name", OF_HF)
def test_transformers_trainer(name: str, tmp_path: Path) -> None:
    """Its first loss on still clips is the 2D network's on their images, and what it saves is what it trained."""
    model, network = pair(name)
    before = copy.deepcopy(network)
    seen = []
    for net, values in ((model, images()), (network, still(images()))):
        trainer = transformers.Trainer(net, arguments(tmp_path), train_dataset=Rows(values), eval_dataset=Rows(values))
        network.train(False)
        trainer.train()
        trainer.save_model(tmp_path)
        metrics = trainer.evaluate()
        predicted = trainer.predict(Rows(values))
        assert predicted.predictions.shape == (2, CLASSES)
        seen.append([row["loss"] for row in trainer.state.log_history if "loss" in row] + [metrics["eval_loss"]])
    assert seen[1][-1] < seen[1][0]
    assert relative_error(torch.tensor(seen[0][:1]), torch.tensor(seen[1][:1])) < 1e-3
    found = transformers.Trainer(before, arguments(tmp_path))
    found._load_from_checkpoint(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), network.cpu().parameters(), strict=True))


@pytest.mark.parametrize("name", OF_HF)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", None])
def test_the_loss_is_transformers_own(name: str, problem: str | None) -> None:
    build, recipe = NETWORKS[name]
    model: Any = build().eval()
    model.config.problem_type = problem
    network: Any = inflate(model, recipe, "mean", size=SIZE)
    labels = torch.rand(2, CLASSES) if problem and problem.startswith("multi") else torch.tensor([1, 3])
    with torch.no_grad():
        theirs = model(pixel_values=images(), labels=labels)
        ours = network(pixel_values=still(images()), labels=labels)
    for key in ("loss", "logits"):
        assert relative_error(theirs[key], ours[key]) < 1e-5


@pytest.mark.parametrize("name", ["torchvision resnet", "timm vit", "hf vit"])
def test_accelerate(name: str, tmp_path: Path) -> None:
    _, network = pair(name)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    model, optimizer = accelerator.prepare(network.train(), optimizer)
    output = model(moving())
    accelerator.backward((output["logits"] if isinstance(output, dict) else output).square().sum())
    optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    trained = copy.deepcopy(network.state_dict())
    optimizer.step()
    accelerator.load_state(str(tmp_path / "state"))
    assert all(torch.equal(trained[key], value) for key, value in network.state_dict().items())
    assert frames_left(accelerator.unwrap_model(model), 4) == 4


class Lit(lightning.LightningModule):
    """As everybody writes it."""

    def __init__(self, net: nn.Module, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


@pytest.mark.parametrize("name", ["torchvision resnet", "timm vit"])
def test_lightning(name: str, tmp_path: Path) -> None:
    """Fits, writes its checkpoint with the network in it, and loads that."""
    _, network = pair(name)
    before = copy.deepcopy(network)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": True}
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    lit = Lit(network.train())
    trainer.fit(lit, DataLoader(TensorDataset(moving(4), torch.arange(4)), 2))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = Lit.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=False).eval()
    with torch.no_grad():
        scores = again.net(moving())
        assert torch.equal(scores, lit.eval().net(moving()))
        assert not torch.equal(scores, before(moving()))
    assert frames_left(again.net, 4) == 4


# PEFT.


@pytest.mark.parametrize(
    ("name", "targets", "count"),
    [
        ("torchvision swin", ["qkv"], 4),
        ("timm swin", ["qkv", "fc1"], 8),
        ("timm vit", r".*attn\.(qkv|proj)", 6),
        ("torchvision convnext", r".*block\.[35]", 8),
        ("timm convnext", r".*mlp\.fc\d", 24),
        ("hf vit", ["q_proj", "v_proj"], 6),
    ],
)
def test_lora(name: str, targets: Any, count: int, tmp_path: Path) -> None:
    """The layers that it trains in 2D, alone; saved, loaded, merged.

    torchvision's Swin reads the weight of `qkv` and does not call it: LoRA does nothing there, in 2D neither.
    """
    model, network = pair(name)
    original = copy.deepcopy(network)
    config = LoraConfig(target_modules=targets, r=4)
    clip = moving()

    def scores(net: Any, given: Tensor = clip) -> Tensor:
        found = net(given)
        return found["logits"] if isinstance(found, dict) else found

    tuned = [get_peft_model(net, config).eval() for net in (model, network)]
    kinds = [[n for n, p in net.named_parameters() if p.requires_grad] for net in tuned]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 2 * count
    with torch.no_grad():
        assert torch.equal(scores(tuned[1]), scores(original))
    for net, given in zip(tuned, (images(), clip), strict=True):
        for key, value in net.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(value)
        if scores(net, given).requires_grad:
            scores(net, given).square().sum().backward()
    trained = [[n for n, p in net.named_parameters() if p.grad is not None] for net in tuned]
    assert trained[0] == trained[1] == ([] if name == "torchvision swin" else kinds[0])
    tuned[1].save_pretrained(tmp_path)
    with torch.no_grad():
        expected = scores(tuned[1])
        assert (relative_error(scores(original), expected) > 1e-6) is bool(trained[1])
        again = PeftModel.from_pretrained(copy.deepcopy(original), tmp_path).eval()
        assert torch.equal(scores(again), expected)
        merged: Any = again.merge_and_unload()
        assert relative_error(expected, scores(merged)) < 1e-3 or not trained[1]
    assert list(merged.state_dict()) == list(original.state_dict())
    assert frames_left(merged, 4) == frames_left(original, 4)


# timm.


def groups(net: nn.Module) -> list[tuple[list[str], float, float]]:
    """Names, factor and decay of each group."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    optimizer = create_optimizer_v2(net, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    return [
        ([names[id(p)] for p in group["params"]], group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("name", [*OF_TIMM, "torchvision resnet"])
def test_layer_decay_of_timms_factory(name: str) -> None:
    model, network = pair(name)
    assert groups(model) == groups(network)
    assert (len(groups(model)) > 5) is name.startswith("timm")


@pytest.mark.parametrize("name", ["timm vit", "torchvision resnet"])
def test_moving_averages_of_weights(name: str) -> None:
    averages, scores = [], []
    for net, given in zip(pair(name), (images(), still(images())), strict=True):
        average = ModelEmaV3(net.eval(), decay=0.5)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
            average.update(net)
            ratios = [(a / b).nanmean() for a, b in zip(average.module.parameters(), net.parameters(), strict=True)]
            averages.append(torch.stack(ratios))
            scores.append(average.module(given))
    assert torch.allclose(*averages, rtol=1e-4, equal_nan=True)
    assert relative_error(*scores) < 1e-4


# What hooks show.


@pytest.mark.parametrize(("name", "block"), [("torchvision resnet", "BasicBlock"), ("timm vit", "Block")])
def test_activation_checkpointing_by_class(name: str, block: str) -> None:
    wrapped = []
    for net, given in zip(pair(name), (images(), moving()), strict=True):
        plain = copy.deepcopy(net)
        apply_activation_checkpointing(net, check_fn=lambda module: type(module).__name__ == block)
        wrapped.append([key for key, module in net.named_modules() if isinstance(module, CheckpointWrapper)])
        for one in (plain, net):
            one(given).square().sum().backward()
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert wrapped[0] == wrapped[1] != []


@pytest.mark.parametrize("way", WAYS)
def test_two_processes(way: str, tmp_path: Path) -> None:
    """Their losses are those of one process with the whole batch."""
    _, network = pair("timm vit")
    clips, labels = moving(4, 2), torch.arange(4)
    expected = losses(copy.deepcopy(network), clips, labels)
    multiprocessing.spawn(train, (way, network, clips, labels, tmp_path), 2)
    found = torch.load(tmp_path / "losses")
    assert relative_error(torch.tensor(expected), torch.tensor(found)) < 1e-4
    assert expected[-1] < expected[0]
