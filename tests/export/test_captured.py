"""Captured programs: the exporter decomposes only those that need it, and the file computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from i3dconvert.comparison.forward import relative_error
from i3dconvert.export import captured
from i3dconvert.export.tracing import trace


class Net(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.then = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), then
        nn.init.normal_(self.norm.running_mean)

    def forward(self, images: Tensor) -> Tensor:
        return self.then(self.norm(self.conv(images)))


def written_to_a_view(found: Tensor) -> Tensor:
    before = found.flatten(1)
    found.relu_()
    return before


def written_through_a_view(found: Tensor) -> Tensor:
    found.flatten(1).relu_()
    return found


def read_by_its_other_name(found: Tensor) -> Tensor:
    return found.relu_().add_(1) + found


def export(network: nn.Module, tmp_path: Path) -> float:
    """Return the error of the file at another batch than the traced one."""
    batch = ({0: torch.export.Dim.DYNAMIC},)
    model = trace(network.eval(), ["images"], ["found"], (torch.randn(2, 3, 8, 8),), batch, None)
    onnx_ir.save(model, tmp_path / "net.onnx")
    images = torch.randn(3, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"images": images.numpy()})
    with torch.no_grad():
        return relative_error(network(images.clone()), torch.from_numpy(found))


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs that torch decomposed."""
    programs: list[str] = []
    whole = ExportedProgram.run_decompositions

    def noted(self: ExportedProgram, *args: Any, **options: Any) -> ExportedProgram:
        programs.append(type(self).__name__)
        return whole(self, *args, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", noted)
    return programs


@pytest.mark.parametrize(
    "then",
    [
        F.relu_,
        read_by_its_other_name,
        lambda found: F.silu(found, inplace=True).add_(1).flatten(1),
        lambda found: F.dropout(found.mean((2, 3)), 0.5, training=False, inplace=True),
        lambda found: found.flatten(2).relu_(),
        lambda found: found + found[:0].reshape(2, 0, 3, 12).sum(),
        lambda found: found.flatten(0, 1) + found[:0].flatten(1, 2).sum(),
        lambda found: found.movedim(1, -1).swapaxes(1, 2),
        lambda found: found.gt(0).to(torch.float32) + found,
        lambda found: F.batch_norm(found, None, None, torch.full((4,), 2.0), torch.ones(4), training=True),
        lambda found: F.batch_norm(found, torch.ones(4), torch.ones(4), training=True),
        lambda found: F.batch_norm(found, torch.ones(4), torch.full((4,), 2.0), eps=0.1),
        lambda found: torch.view_as_real(found.to(torch.complex64)),
    ],
)
def test_nothing_is_decomposed_where_new_tensors_can_be_returned_instead(
    then: Callable[[Tensor], Tensor], tmp_path: Path, decomposed: list[str]
) -> None:
    assert export(Net(then), tmp_path) < 1e-6
    assert not decomposed


@pytest.mark.parametrize("then", [written_to_a_view, written_through_a_view])
def test_what_others_read_is_decomposed(
    then: Callable[[Tensor], Tensor], tmp_path: Path, decomposed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(Net(then), tmp_path) < 1e-6
    assert decomposed
    monkeypatch.setattr(captured, "_nobody_else_sees", lambda *_: True)
    assert export(Net(then), tmp_path) > 1e-2


def test_what_has_no_form_in_onnx_is_left_to_the_exporter(tmp_path: Path, decomposed: list[str]) -> None:
    assert export(Net(lambda found: F.adaptive_avg_pool2d(found, 2)), tmp_path) < 1e-6
    assert decomposed


def test_a_network_that_torch_captures_only_another_way_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr("i3dconvert.export.tracing.capture", fails)
    assert export(Net(F.relu), tmp_path) < 1e-6


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = nn.LSTM(3, 4, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.steps(images.mean(2).swapaxes(1, 2))[0]


@pytest.mark.slow
def test_the_steps_of_a_recurrent_layer_stay_free(tmp_path: Path) -> None:
    axes = ({0: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.AUTO},)
    model = trace(Sequence().eval(), ["images"], ["found"], (torch.randn(2, 3, 2, 3),), axes, None)
    for sizes in (model.graph.inputs[0].shape, model.graph.outputs[0].shape):
        assert not any(str(size.value).isdecimal() for size in sizes if not isinstance(size, int))
    onnx_ir.save(model, tmp_path / "net.onnx")
    images = torch.randn(3, 3, 2, 5)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"images": images.numpy()})
    with torch.no_grad():
        assert relative_error(Sequence()(images), torch.from_numpy(found)) < 1e-6


class Twice(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images + 1, images


@pytest.mark.parametrize("names", [["found", "given"], None])
def test_an_input_that_is_an_output_keeps_its_name(names: list[str] | None) -> None:
    model = trace(Twice(), ["images"], names, (torch.randn(2, 3),), None, None)
    assert [value.name for value in model.graph.inputs] == ["images"]
    outputs = [value.name for value in model.graph.outputs]
    assert outputs == (names or outputs)
    assert "images" not in outputs
