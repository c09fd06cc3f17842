"""Small networks of other libraries: transformers, MONAI, segmentation-models-pytorch and torchxrayvision.

`CATALOGUE` gives for each name a function that builds it, and the image `(C, H, W)` that it takes. The libraries are
imported when a network of theirs is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tools.others import OTHERS

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Outside:
    """A network of another library."""

    build: Callable[[], nn.Module]
    shape: Shape = (3, 64, 64)
    volumes: bool = field(default=False)
    """Whether it is also used on volumes, with depth strided like height and width."""


# transformers: a network class, and its configuration with few and narrow layers. Excluded are classes that need more
# than images (Siglip2, ImageGPT), need another package (Dinat), wrap timm's networks, or fail in 2D.

_VIT: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
_STAGES: Mapping[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_CONVNEXT: Mapping[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_SWIN: Mapping[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "image_size": 64,
    "patch_size": 4,
}
_PYRAMID: Mapping[str, Any] = {
    "hidden_sizes": [16, 32, 40, 64],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [1, 1, 1, 1],
}
_BACKBONE: Mapping[str, Any] = {"out_features": ["stage1", "stage2"]}

_TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "Aimv2VisionModel": _VIT,
    "AlignVisionModel": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 64, "hidden_dim": 320},
    "AltCLIPVisionModel": _VIT,
    "BeitForImageClassification": _VIT,
    "BeitForSemanticSegmentation": _VIT
    | {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4, "pool_scales": [1, 2], "auxiliary_channels": 8},
    "BeitBackbone": _VIT | _BACKBONE,
    "BitForImageClassification": _STAGES | {"num_groups": 8},
    "BitBackbone": _STAGES | {"num_groups": 8} | _BACKBONE,
    "Blip2VisionModel": _VIT,
    "BlipVisionModel": _VIT,
    "CLIPForImageClassification": {"vision_config": dict(_VIT)},
    "CLIPSegVisionModel": _VIT,
    "CLIPVisionModel": _VIT,
    "CLIPVisionModelWithProjection": _VIT,
    "ChineseCLIPVisionModel": _VIT,
    "ConvNextForImageClassification": _CONVNEXT,
    "ConvNextBackbone": _CONVNEXT | _BACKBONE,
    "ConvNextV2ForImageClassification": _CONVNEXT,
    "ConvNextV2Backbone": _CONVNEXT | _BACKBONE,
    "CvtForImageClassification": {
        "embed_dim": [16, 32, 48],
        "num_heads": [1, 2, 3],
    },
    "DPTForSemanticSegmentation": _VIT
    | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16] * 4}
    | {"fusion_hidden_size": 16, "is_hybrid": False},
    "DPTForDepthEstimation": _VIT
    | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16] * 4}
    | {"fusion_hidden_size": 16, "is_hybrid": False},
    "Data2VecVisionForImageClassification": _VIT,
    "DeiTForImageClassification": _VIT,
    "DeiTForImageClassificationWithTeacher": _VIT,
    "Dinov2ForImageClassification": _VIT,
    "Dinov2Backbone": _VIT | _BACKBONE,
    "Dinov2WithRegistersForImageClassification": _VIT,
    "Dinov2WithRegistersBackbone": _VIT | _BACKBONE,
    "DINOv3ConvNextModel": _CONVNEXT,
    "DINOv3ConvNextBackbone": _CONVNEXT | _BACKBONE,
    "DINOv3ViTModel": _VIT,
    "DINOv3ViTBackbone": _VIT | _BACKBONE,
    "DonutSwinForImageClassification": _SWIN,
    "EfficientNetForImageClassification": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "image_size": 64,
        "hidden_dim": 320,
    },
    "FocalNetForImageClassification": {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 64},
    "GitVisionModel": _VIT,
    "GLPNForDepthEstimation": _PYRAMID | {"decoder_hidden_size": 16},
    "GroupViTVisionModel": {
        "hidden_size": 32,
        "image_size": 64,
        "patch_size": 16,
        "depths": [1, 1, 1],
        "num_group_tokens": [4, 2, 0],
        "num_output_groups": [4, 2, 0],
        "num_attention_heads": 2,
    },
    "HGNetV2ForImageClassification": {},
    "HGNetV2Backbone": dict(_BACKBONE),
    "HieraForImageClassification": {
        "embed_dim": 16,
        "image_size": [64, 64],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "HieraBackbone": {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    | _BACKBONE,
    "IJepaForImageClassification": _VIT,
    "Idefics3VisionTransformer": _VIT,
    "InstructBlipVisionModel": _VIT,
    "InternVLVisionModel": _VIT | {"image_size": [64, 64], "patch_size": [16, 16]},
    "JanusVisionModel": _VIT,
    "LwDetrViTBackbone": _VIT | _BACKBONE | {"window_block_indices": [0], "num_windows": 4, "pretrain_image_size": 64},
    "LevitForImageClassification": {
        "image_size": 64,
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "MaskFormerSwinBackbone": _SWIN | {"num_heads": [2, 2, 4], "out_features": ["stage1"]},
    "MetaClip2ForImageClassification": {"vision_config": dict(_VIT)},
    "MetaClip2VisionModel": _VIT,
    "MLCDVisionModel": _VIT,
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.25},
    "MobileNetV2ForSemanticSegmentation": {"depth_multiplier": 0.25},
    "MobileViTForImageClassification": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 16, 16, 24, 32, 48, 64],
    },
    "MobileViTForSemanticSegmentation": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 16, 16, 24, 32, 48, 64],
        "aspp_out_channels": 16,
    },
    "MobileViTV2ForImageClassification": {"image_size": 64, "width_multiplier": 0.25},
    "MobileViTV2ForSemanticSegmentation": {"image_size": 64, "width_multiplier": 0.25, "aspp_out_channels": 16},
    "OwlViTVisionModel": _VIT,
    "Owlv2VisionModel": _VIT,
    "PerceiverForImageClassificationLearned": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 16,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
        "image_size": 64,
    },
    "PoolFormerForImageClassification": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "PPLCNetForImageClassification": {"scale": 0.25},
    "PPLCNetBackbone": {"scale": 0.25} | _BACKBONE,
    "PPLCNetV3Backbone": {"scale": 0.25},
    "PPLCNetV4Backbone": {"scale": 0.25},
    "PvtForImageClassification": _PYRAMID | {"image_size": 64},
    "PvtV2ForImageClassification": _PYRAMID | {"image_size": 64},
    "PvtV2Backbone": _PYRAMID | {"image_size": 64} | _BACKBONE,
    "PixioBackbone": _VIT | _BACKBONE,
    "RegNetForImageClassification": _STAGES | {"groups_width": 8},
    "ResNetForImageClassification": _STAGES,
    "ResNetBackbone": _STAGES | _BACKBONE,
    "RTDetrResNetBackbone": _STAGES | _BACKBONE,
    "RfDetrDinov2Backbone": _VIT | _BACKBONE,
    "SamHQVisionModel": _VIT
    | {"global_attn_indexes": [1], "window_size": 2, "output_channels": 16, "num_pos_feats": 8},
    "SamVisionModel": _VIT | {"global_attn_indexes": [1], "window_size": 2, "output_channels": 16, "num_pos_feats": 8},
    "Sapiens2Backbone": _VIT | _BACKBONE,
    "SegformerForImageClassification": _PYRAMID,
    "SegformerForSemanticSegmentation": _PYRAMID | {"decoder_hidden_size": 16},
    "SiglipForImageClassification": {"vision_config": dict(_VIT)},
    "SiglipVisionModel": _VIT,
    "SmolVLMVisionTransformer": _VIT,
    "SwiftFormerForImageClassification": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]},
    "Swin2SRForImageSuperResolution": {
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
        "window_size": 4,
        "image_size": 64,
    },
    "SwinForImageClassification": _SWIN,
    "SwinBackbone": _SWIN | _BACKBONE,
    "Swinv2ForImageClassification": _SWIN,
    "Swinv2Backbone": _SWIN | _BACKBONE,
    "TextNetForImageClassification": {"hidden_sizes": [64, 16, 24, 32, 48]},
    "TextNetBackbone": {"hidden_sizes": [64, 16, 24, 32, 48]} | _BACKBONE,
    "Tipsv2VisionBackbone": _VIT | _BACKBONE,
    "Tipsv2VisionModel": _VIT,
    "UVDocBackbone": {},
    "UperNetForSemanticSegmentation": {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8},
    "ViTForImageClassification": _VIT,
    "ViTMSNForImageClassification": _VIT,
    "YolosModel": _VIT | {"image_size": [64, 64]},
    "VitDetBackbone": _VIT | {"pretrain_image_size": 64, "window_size": 2} | _BACKBONE,
    "VitPoseBackbone": _VIT | {"image_size": [64, 64], "patch_size": [16, 16]} | _BACKBONE,
}


def _transformers(name: str, options: Mapping[str, Any]) -> nn.Module:
    network = getattr(import_module("transformers"), name)
    configuration = network.config_class(**options)
    return network(configuration)


# MONAI: 2D networks, with the usual `(C, H, W)`.

_MONAI: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "UNet": ("UNet", {"in_channels": 3, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}),
    "UNet-residual": (
        "UNet",
        {"in_channels": 3, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2},
    ),
    "BasicUNet": ("BasicUNet", {"in_channels": 3, "out_channels": 2, "features": (8, 8, 16, 32, 64, 8)}),
    "BasicUNetPlusPlus": (
        "BasicUNetPlusPlus",
        {"in_channels": 3, "out_channels": 2, "features": (8, 8, 16, 32, 64, 8)},
    ),
    "SegResNet": ("SegResNet", {"in_channels": 3, "out_channels": 2, "init_filters": 8}),
    "SegResNetVAE": ("SegResNetVAE", {"in_channels": 3, "input_image_size": (64, 64), "init_filters": 8}),
    "DynUNet": (
        "DynUNet",
        {
            "in_channels": 3,
            "out_channels": 2,
            "kernel_size": (3, 3, 3, 3),
            "strides": (1, 2, 2, 2),
            "upsample_kernel_size": (2, 2, 2),
            "filters": (8, 16, 32, 64),
        },
    ),
    "AttentionUnet": (
        "AttentionUnet",
        {"in_channels": 3, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)},
    ),
    "HighResNet": ("HighResNet", {"in_channels": 3, "out_channels": 2}),
    "UNETR": (
        "UNETR",
        {
            "in_channels": 3,
            "out_channels": 2,
            "img_size": 64,
            "feature_size": 8,
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_heads": 4,
        },
    ),
    "SwinUNETR": ("SwinUNETR", {"in_channels": 3, "out_channels": 2, "feature_size": 12, "window_size": 4}),
    "FlexibleUNet": ("FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}),
    "VNet": ("VNet", {"in_channels": 1, "out_channels": 2}),
    "DenseNet": (
        "DenseNet",
        {"in_channels": 3, "out_channels": 5, "init_features": 16, "growth_rate": 8, "block_config": (2, 2, 2)},
    ),
    "SENet": (
        "SENet",
        {
            "in_channels": 3,
            "num_classes": 5,
            "block": "se_bottleneck",
            "layers": (1, 1, 1, 1),
            "groups": 1,
            "reduction": 16,
        },
    ),
    "ResNet": (
        "ResNet",
        {
            "block": "basic",
            "layers": (1, 1, 1, 1),
            "block_inplanes": (8, 16, 24, 32),
            "n_input_channels": 3,
            "num_classes": 5,
        },
    ),
    "EfficientNet": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False, "num_classes": 5}),
    "ViT": (
        "ViT",
        {
            "in_channels": 3,
            "img_size": 64,
            "patch_size": 16,
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "classification": True,
        },
    ),
    "AutoEncoder": (
        "AutoEncoder",
        {"in_channels": 3, "out_channels": 3, "channels": (8, 16, 32), "strides": (2, 2, 2)},
    ),
    "DiffusionModelUNet": (
        "DiffusionModelUNet",
        {
            "in_channels": 3,
            "out_channels": 3,
            "channels": (8, 16, 16),
            "attention_levels": (False, True, True),
            "num_res_blocks": 1,
            "num_head_channels": 8,
            "norm_num_groups": 8,
        },
    ),
}


class AtTime(nn.Module):
    """A diffusion network at one time step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        """Map `(N, C, H, W)` to `(N, C', H, W)`."""
        return self.network(x, torch.full((x.shape[0],), 3, device=x.device))


def monai(name: str, dimensions: int = 2) -> nn.Module:
    """Return MONAI's network `name`, for images or for volumes (`dimensions=3`)."""
    builder, options = _MONAI[name]
    given = dict(options)
    if builder == "SENet":
        block = import_module("monai.networks.blocks.squeeze_and_excitation").SEBottleneck
        given["block"] = block
    if dimensions == 3 and isinstance(given.get("input_image_size"), tuple):
        given["input_image_size"] = (64, 64, 64)
    network: nn.Module = getattr(import_module("monai.networks.nets"), builder)(spatial_dims=dimensions, **given)
    return AtTime(network) if name == "DiffusionModelUNet" else network


# segmentation-models-pytorch: every architecture, with a CNN and with a transformer as encoder.

_SMP = "DPT DeepLabV3 DeepLabV3Plus FPN Linknet MAnet PAN PSPNet Segformer UPerNet Unet UnetPlusPlus".split()
_ENCODERS = ("resnet18", "mit_b0")
_NOT_THERE = {("DPT", "resnet18"), ("DPT", "mit_b0"), ("DeepLabV3", "mit_b0"), ("DeepLabV3Plus", "mit_b0")}
"""Pairs that the library rejects."""
_NOT_THERE |= {("PAN", "resnet18"), ("Linknet", "mit_b0"), ("PAN", "mit_b0"), ("UnetPlusPlus", "mit_b0")}


def _smp(architecture: str, encoder: str) -> nn.Module:
    library = import_module("segmentation_models_pytorch")
    network: nn.Module = getattr(library, architecture)(encoder, encoder_weights=None, classes=4)
    return network


def _smp_dpt() -> nn.Module:
    library = import_module("segmentation_models_pytorch")
    return library.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=4, encoder_depth=4)


def _xrayvision(name: str) -> nn.Module:
    return import_module("torchxrayvision").models.DenseNet(weights=None)


CATALOGUE: Mapping[str, Outside] = {
    **{name: Outside(build, shape) for name, (build, shape) in OTHERS.items()},
    **{f"transformers/{name}": Outside(partial(_transformers, name, o)) for name, o in _TRANSFORMERS.items()},
    **{
        f"monai/{name}": Outside(partial(monai, name), (o.get("in_channels", 3), 64, 64), volumes=True)
        for name, (_, o) in _MONAI.items()
    },
    **{
        f"smp/{architecture}-{encoder}": Outside(partial(_smp, architecture, encoder), volumes=True)
        for architecture in _SMP
        for encoder in _ENCODERS
        if (architecture, encoder) not in _NOT_THERE
    },
    "smp/DPT-vit_tiny": Outside(_smp_dpt, (3, 224, 224)),
    "smp/PAN-resnet18": Outside(partial(_smp, "PAN", "resnet18"), (3, 128, 128), volumes=True),
    "torchxrayvision/DenseNet": Outside(partial(_xrayvision, "densenet"), (1, 224, 224)),
}
