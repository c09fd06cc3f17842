"""Networks of pytorchcv (one of each family), vit-pytorch, efficientnet_pytorch, ultralytics, and smp's encoders.

`OTHERS` gives for each name a function that builds it, and the image `(C, H, W)` that it takes. The libraries are
imported when a network of theirs is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

Shape = tuple[int, int, int]
SIZES: Mapping[str, int] = {"inceptionv3": 299, "inceptionv4": 299, "inceptionresnetv1": 160, "inceptionresnetv2": 299}
"""The sizes of pytorchcv's networks that take no 224 pixels."""

_PYTORCHCV: tuple[str, ...] = ()

_SMALL: Mapping[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
_VIT: Mapping[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 5, **_SMALL}
_VIT_PYTORCH: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ViT": ("vit", _VIT),
    "SimpleViT": ("simple_vit", _VIT),
    "DeepViT": ("deepvit", _VIT),
    "CaiT": ("cait", {**_VIT, "cls_depth": 1}),
    "T2TViT": ("t2t", {"dim": 32, "image_size": 64, "depth": 2, "heads": 2, "mlp_dim": 64, "num_classes": 5}),
    "CCT": ("cct", {"img_size": 64, "embedding_dim": 32, "num_layers": 2, "num_heads": 2, "num_classes": 5}),
    "PiT": ("pit", {**_VIT, "depth": (1, 1, 1), "patch_size": 8}),
    "LeViT": (
        "levit",
        {"image_size": 64, "num_classes": 5, "stages": 2, "dim": (32, 48), "depth": 2, "heads": (2, 3), "mlp_mult": 2},
    ),
    "CvT": (
        "cvt",
        {"num_classes": 5, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, "s2_heads": 2, "s3_heads": 3}
        | {"s3_depth": 2},
    ),
    "TwinsSVT": (
        "twins_svt",
        {"num_classes": 5, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, "s4_emb_dim": 64, "s3_depth": 1},
    ),
    "CrossViT": ("cross_vit", {"image_size": 96, "num_classes": 5, "depth": 1, "sm_dim": 16, "lg_dim": 32}),
    "CrossFormer": (
        "crossformer",
        {"num_classes": 5, "dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "local_window_size": (2, 2, 2, 2)}
        | {"global_window_size": (8, 4, 2, 1)},
    ),
    "RegionViT": (
        "regionvit",
        {"dim": (16, 32, 48, 64), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5},
    ),
    "ScalableViT": (
        "scalable_vit",
        {"num_classes": 5, "dim": 16, "heads": (1, 2, 3, 4), "depth": (1, 1, 1, 1), "window_size": (8, 4, None, None)}
        | {"ssa_dim_key": (10, 10, 10, 8), "reduction_factor": (8, 4, 2, 1)},
    ),
    "SepViT": (
        "sep_vit",
        {"num_classes": 5, "dim": 16, "dim_head": 8, "heads": (1, 2, 2, 2), "depth": (1, 1, 1, 1)},
    ),
    "MaxViT": (
        "max_vit",
        {"num_classes": 5, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4},
    ),
    "NesT": (
        "nest",
        {"image_size": 64, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 3, "block_repeats": (1, 1, 1)}
        | {"num_classes": 5},
    ),
    "MobileViT": (
        "mobile_vit",
        {"image_size": (64, 64), "dims": [32, 40, 48], "num_classes": 5}
        | {"channels": [16, 16, 24, 24, 32, 32, 40, 40, 48, 48, 96]},
    ),
    "XCiT": ("xcit", {**_VIT, "cls_depth": 1}),
    "RvT": ("rvt", _VIT),
    "ViT for small datasets": ("vit_for_small_dataset", _VIT),
    "ViT with parallel blocks": ("parallel_vit", _VIT),
    "ViT with patch dropout": ("vit_with_patch_dropout", {**_VIT, "patch_dropout": 0.25}),
    "ViT with registers": ("simple_vit_with_register_tokens", _VIT),
}

_VIT_SIZES: Mapping[str, int] = {"TwinsSVT": 224, "CrossViT": 96, "SepViT": 224}

_ENCODERS = (
    *("resnext50_32x4d", "resnet50", "timm-resnest14d", "timm-res2net50_26w_4s", "timm-regnetx_002"),
    *("timm-regnety_002", "timm-gernet_s", "se_resnet50", "se_resnext50_32x4d", "senet154", "timm-skresnet18"),
    *("densenet121", "inceptionresnetv2", "inceptionv4", "efficientnet-b0", "efficientnet-b4"),
    *("timm-efficientnet-b0", "timm-tf_efficientnet_lite0", "mobilenet_v2", "timm-mobilenetv3_small_100", "dpn68"),
    *("vgg11", "vgg16_bn", "mit_b0", "mobileone_s0", "xception", "tu-convnext_atto", "tu-resnet10t"),
)


def _pytorchcv(name: str) -> nn.Module:
    network: nn.Module = import_module("pytorchcv.model_provider").get_model(name, pretrained=False)
    return network


def _vit_pytorch(name: str) -> nn.Module:
    module, options = _VIT_PYTORCH[name]
    library = import_module(f"vit_pytorch.{module}")
    network: nn.Module = getattr(library, name if hasattr(library, name) else _class_of(library))(**options)
    return network


def _class_of(library: Any) -> str:
    return next(name for name in ("ViT", "SimpleViT") if hasattr(library, name))


def _efficientnet(name: str) -> nn.Module:
    network: nn.Module = import_module("efficientnet_pytorch").EfficientNet.from_name(name)
    return network


def _ultralytics(name: str) -> nn.Module:
    network: nn.Module = import_module("ultralytics.nn.tasks").ClassificationModel(f"{name}.yaml", nc=5, verbose=False)
    return network


def _encoder(name: str) -> nn.Module:
    library = import_module("segmentation_models_pytorch")
    network: nn.Module = library.Unet(name, encoder_weights=None, classes=4)
    return network


def _square(size: int) -> Shape:
    return (3, size, size)


OTHERS: Mapping[str, tuple[Callable[[], nn.Module], Shape]] = {
    **{f"pytorchcv/{name}": (partial(_pytorchcv, name), _square(SIZES.get(name, 224))) for name in _PYTORCHCV},
    **{
        f"vit-pytorch/{name}": (partial(_vit_pytorch, name), _square(_VIT_SIZES.get(name, 64))) for name in _VIT_PYTORCH
    },
    **{f"efficientnet_pytorch/{name}": (partial(_efficientnet, name), _square(64)) for name in ("efficientnet-b0",)},
    **{f"ultralytics/{name}": (partial(_ultralytics, name), _square(64)) for name in ("yolov8n-cls", "yolo11n-cls")},
    **{f"encoders/{name}": (partial(_encoder, name), _square(64)) for name in _ENCODERS},
}
