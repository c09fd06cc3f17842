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
_PYTORCHCV: Mapping[int, str] = {
    32: """
        densenet40_k12_cifar10 diapreresnet20_cifar10 diaresnet20_cifar10 fractalnet_cifar10 msdnet22_cifar10
        nin_cifar10 preresnet20_cifar10 pyramidnet110_a48_cifar10 resdropresnet20_cifar10 resnet20_cifar10
        resnext20_16x4d_cifar10 rir_cifar10 ror3_56_cifar10 sepreresnet20_cifar10 seresnet20_cifar10
        shakedropresnet20_cifar10 shakeshakeresnet20_2x16d_cifar10 wrn16_10_cifar10 wrn20_10_1bit_cifar10
        xdensenet40_2_k24_bc_cifar10
    """,
    64: """
        alphapose_fastseresnet101b_coco centernet_resnet18_voc cgnet_cityscapes ctxnet_cityscapes
        dabnet_cityscapes danet_resnetd50b_cityscapes dicenet_wd5 edanet_cityscapes efficientnet_b0
        efficientnet_edge_small_b enet_cityscapes erfnet_cityscapes esnet_cityscapes fcn8sd_resnetd50b_voc
        fpenet_cityscapes ibppose_coco isqrtcovresnet18 lednet_cityscapes linknet_cityscapes
        lwopenpose2d_mobilenet_cmupan_coco prnet regnetx002 resnestabc14 resneta10 resnetd50b segnet_cityscapes
        simplepose_mobile_resnet18_coco simplepose_resnet18_coco sqnet_cityscapes tresnet_m unet_cityscapes
    """,
    128: """
        lffd20x5s320v2_widerface scnet50 sinet_cityscapes
    """,
    160: """
        msdnet22
    """,
    224: """
        airnet50_1x64d_r2 airnext50_32x4d_r2 alexnet bagnet9 bam_resnet18 bninception cbam_resnet18 channelnet
        condensenet74_c4_g4 darknet53 darknet_ref darts densenet121 diapreresnet10 diaresnet10 diracnet18v2
        dla34 dpn68 drnc26 espnetv2_wd2 fastseresnet101b fbnet_cb fdmobilenet_w1 fishnet99 ghostnet hardnet39ds
        hrnet_w18_small_v1 ibn_densenet121 ibn_resnet50 ibn_resnext50_32x4d ibnb_resnet50 igcv3_w1 irevnet301
        menet108_8x1_g3 mixnet_s mnasnet_b1 mobilenet_w1 mobilenet_w1_cub mobilenetb_w1 mobilenetv2_w1
        mobilenetv3_small_w7d20 nasnet_4a1056 octresnet10_ad2 peleenet preresnet10 proxylessnas_cpu
        proxylessnas_cpu_cub pyramidnet101_a360 resattnet56 resnet10 resnet10_cub resnext14_16x4d revnet38
        selecsls42 senet16 sepreresnet10 seresnet10 seresnet10_cub seresnext50_32x4d sharesnet18
        shufflenet_g1_w1 shufflenetv2_wd2 shufflenetv2b_wd2 sknet50 sparsenet121 spnasnet sqnxt23_w1
        squeezenet_v1_0 vgg11 vovnet27s wrn50_2 xdensenet121_2 zfnet
    """,
    299: """
        inceptionresnetv1 inceptionresnetv2 inceptionv3 inceptionv4 xception
    """,
    331: """
        polynet
    """,
    448: """
        ntsnet_cub
    """,
    480: """
        deeplabv3_resnetd50b_voc icnet_resnetd50b_cityscapes pspnet_resnetd50b_voc
    """,
    1024: """
        fastscnn_cityscapes
    """,
}
"""By the smallest size, of those tried, that a network accepts: the first network of each of its families of image
networks."""

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
    **{
        f"pytorchcv/{name}": (partial(_pytorchcv, name), _square(size))
        for size, names in _PYTORCHCV.items()
        for name in names.split()
    },
    **{
        f"vit-pytorch/{name}": (partial(_vit_pytorch, name), _square(_VIT_SIZES.get(name, 64))) for name in _VIT_PYTORCH
    },
    **{f"efficientnet_pytorch/{name}": (partial(_efficientnet, name), _square(64)) for name in ("efficientnet-b0",)},
    **{f"ultralytics/{name}": (partial(_ultralytics, name), _square(64)) for name in ("yolov8n-cls", "yolo11n-cls")},
    **{f"encoders/{name}": (partial(_encoder, name), _square(64)) for name in _ENCODERS},
}
