"""timm-3d."""

from __future__ import annotations

from i3dconvert.backbones import Source
from i3dconvert.frameworks import framework_of
from i3dconvert.lift.kernels import Style
from i3dconvert.lift.planning import plan


def test_a_vgg_with_a_cubic_classifier_needs_as_many_frames_as_pixels() -> None:
    model, origin = Source("timm/vgg11", "random", size=32).load()
    inflation = plan(model, framework_of("timm-3d").target("timm/vgg11").recipe, Style(), origin.input).inflation
    assert inflation.minimum_frames == 224
    assert inflation.shape("pre_logits.fc1.weight", model.state_dict()["pre_logits.fc1.weight"]) == (4096, 512, 7, 7, 7)
