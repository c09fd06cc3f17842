"""Hugging Face transformers: TimeSformer (Bertasius et al., arXiv:2102.05095), from a plain vision transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from i3dconvert.backbones import Origin
from i3dconvert.errors import LayoutError
from i3dconvert.frameworks.framework import ZEROS, Conversion, Format, Framework, Target, called
from i3dconvert.lift.attention.joint import EMBEDDED_FRAMES
from i3dconvert.recipes import preset

_LAYER = "timesformer.encoder.layer.{}"


def _config(origin: Origin) -> dict[str, Any]:
    """Return the `TimesformerConfig` fields that differ from its defaults."""
    network: Any = origin.build()
    block = network.blocks[0]
    names = dict(enumerate(origin.class_names())) or {i: f"LABEL_{i}" for i in range(origin.classes)}
    return {
        "architectures": ["TimesformerForVideoClassification"],
        "model_type": "timesformer",
        "attention_type": "divided_space_time",
        "image_size": origin.input[1],
        "patch_size": network.patch_embed.patch_size[0],
        "num_channels": origin.input[0],
        "num_frames": EMBEDDED_FRAMES,
        "hidden_size": network.embed_dim,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
        "qkv_bias": block.attn.qkv.bias is not None,
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
    }


def _files(origin: Origin) -> dict[str, Any]:
    """Return the files beside the weights."""
    return {"config.json": _config(origin), "preprocessor_config.json": origin.preprocessing.to_processor()}


def _build(origin: Origin) -> nn.Module:
    import transformers

    config = transformers.TimesformerConfig(**_config(origin))
    network = transformers.TimesformerForVideoClassification(config)
    return called(network, lambda clip: (clip.transpose(1, 2),), lambda output: output.logits)


def _to_table(embeddings: Tensor) -> Tensor:
    """Convert time embeddings to a table; those for fewer frames are repeated to fill it."""
    frames = embeddings.shape[1]
    if frames != EMBEDDED_FRAMES and not 1 < frames <= EMBEDDED_FRAMES // 2:
        raise LayoutError(
            f"its time embedding is for {frames} frames: only {EMBEDDED_FRAMES} and 2 to "
            f"{EMBEDDED_FRAMES // 2} are supported"
        )
    places = torch.arange(EMBEDDED_FRAMES) * (frames - 1) / (EMBEDDED_FRAMES - 1)
    return embeddings[0, places.round().long()].T


FRAMEWORK = Framework(
    "transformers",
    source="transformers 5.24, models/timesformer",
    targets=(
        Target(
            "timesformer",
            "vit_tiny_patch16_???|vit_small_patch??_???|vit_base_patch8_224|vit_base_patch??_???|vit_large_patch??_???"
            "|deit_tiny_patch16_224|deit_small_patch16_224|deit_base_patch16_???",
            preset("divided"),
            _build,
            "transformers.TimesformerForVideoClassification.from_pretrained(FOLDER)",
            f"for clips of {EMBEDDED_FRAMES} frames: transformers mixes up the tokens of any other number",
            style=replace(ZEROS, time_embedding="zeros"),
            frames=EMBEDDED_FRAMES,
            files=_files,
        ),
    ),
    format=Format(
        keys=(
            ("cls_token", "timesformer.embeddings.cls_token"),
            ("pos_embed", "timesformer.embeddings.position_embeddings"),
            ("patch_embed.proj_time.table", "timesformer.embeddings.time_embeddings"),
            ("patch_embed.proj", "timesformer.embeddings.patch_embeddings.projection"),
            ("blocks.{}.norm1", f"{_LAYER}.layernorm_before"),
            ("blocks.{}.attn.qkv", f"{_LAYER}.attention.attention.qkv"),
            ("blocks.{}.attn.proj", f"{_LAYER}.attention.output.dense"),
            ("blocks.{}.attn_time.norm", f"{_LAYER}.temporal_layernorm"),
            ("blocks.{}.attn_time.qkv", f"{_LAYER}.temporal_attention.attention.qkv"),
            ("blocks.{}.attn_time.proj", f"{_LAYER}.temporal_attention.output.dense"),
            ("blocks.{}.attn_time.dense", f"{_LAYER}.temporal_dense"),
            ("blocks.{}.norm2", f"{_LAYER}.layernorm_after"),
            ("blocks.{}.mlp.fc1", f"{_LAYER}.intermediate.dense"),
            ("blocks.{}.mlp.fc2", f"{_LAYER}.output.dense"),
            ("norm", "timesformer.layernorm"),
            ("head", "classifier"),
        ),
        conversions={
            "patch_embed.proj_time.table": Conversion(lambda table: table.T.unsqueeze(0), _to_table),
            "patch_embed.proj.weight": Conversion(lambda kernel: kernel.squeeze(2), lambda kernel: kernel.unsqueeze(2)),
        },
    ),
    suffix="",
    sources="timm",
    install="pip install transformers",
)
