"""SlowFast: its single-pathway ResNets, C2D, I3D and Slow."""

from __future__ import annotations

from i3dconvert.frameworks.framework import Framework, Target
from i3dconvert.frameworks.pytorchvideo import C2D, I3D, KINETICS
from i3dconvert.recipes import preset

_DEPTHS = "resnet50|resnet101"

SLOWFAST = Framework(
    "slowfast",
    source="github.com/facebookresearch/SlowFast, models/video_model_builder.py, resnet_helper.py, stem_helper.py",
    targets=(
        Target("slow", _DEPTHS, preset("slow"), built_by="MODEL.ARCH slow, RESNET.DEPTH {depth}"),
        Target("c2d", _DEPTHS, C2D, built_by="MODEL.ARCH c2d, RESNET.DEPTH {depth}"),
        Target("i3d", _DEPTHS, I3D, built_by="MODEL.ARCH i3d, RESNET.DEPTH {depth}"),
    ),
    keys=(
        ("conv1", "s1.pathway0_stem.conv"),
        ("bn1", "s1.pathway0_stem.bn"),
        *(
            row
            for stage in (1, 2, 3, 4)
            for row in (
                (f"layer{stage}.{{}}.conv1", f"s{stage + 1}.pathway0_res{{}}.branch2.a"),
                (f"layer{stage}.{{}}.conv2", f"s{stage + 1}.pathway0_res{{}}.branch2.b"),
                (f"layer{stage}.{{}}.conv3", f"s{stage + 1}.pathway0_res{{}}.branch2.c"),
                (f"layer{stage}.{{}}.bn1", f"s{stage + 1}.pathway0_res{{}}.branch2.a_bn"),
                (f"layer{stage}.{{}}.bn2", f"s{stage + 1}.pathway0_res{{}}.branch2.b_bn"),
                (f"layer{stage}.{{}}.bn3", f"s{stage + 1}.pathway0_res{{}}.branch2.c_bn"),
                (f"layer{stage}.{{}}.downsample.0", f"s{stage + 1}.pathway0_res{{}}.branch1"),
                (f"layer{stage}.{{}}.downsample.1", f"s{stage + 1}.pathway0_res{{}}.branch1_bn"),
            )
        ),
        ("fc", "head.projection"),
    ),
    suffix=".pyth",
    nest="model_state",
    preprocessing=KINETICS,
)
