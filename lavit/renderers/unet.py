"""diffusers' ``UNet2DConditionModel``, made new from a shape or opened from a local folder of that shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lavit.renderers.conditioning import ConditioningConfig
from lavit.renderers.pretrained import differences, open_model


@dataclass
class UNetConfig:
    """Shape of the U-Net; one entry of each list a resolution, halved between them.

    ``cross_attention`` says at which resolutions, besides the middle, pixels attend to the features, with how many
    ``heads`` in how many ``transformers`` a layer (one each where the list is empty); ``linear`` makes these begin
    with a linear layer, as SDXL's do, in place of a convolution. With ``folder``, a local diffusers folder (SD-1.5's
    ``unet/``) of this shape, training begins from its weights.
    """

    channels: list[int] = field(default_factory=lambda: [96, 160])
    cross_attention: list[bool] = field(default_factory=lambda: [False, False])
    heads: list[int] = field(default_factory=lambda: [3, 5])
    transformers: list[int] = field(default_factory=list)
    layers: int = 1
    groups: int = 16
    linear: bool = False
    folder: str | None = None


def check_unet(config: UNetConfig, key: str = "decoder.model.unet") -> None:
    """Check the lists against each other.

    Raises:
        ValueError: of different lengths, or channels that groups or heads do not divide.
    """
    if not config.channels or min(config.channels + config.heads) < 1 or config.groups < 1 or config.layers < 1:
        raise ValueError(f"{key}: channels, heads, groups and layers must be at least 1, and there must be channels")
    lists = {"cross_attention": config.cross_attention, "heads": config.heads}
    lists |= {"transformers": config.transformers} if config.transformers else {}
    for name, values in lists.items():
        if len(values) != len(config.channels):
            raise ValueError(
                f"{key}.{name} has {len(values)} entries and {key}.channels {len(config.channels)}: "
                "give one a resolution"
            )
    for channels, heads in zip(config.channels, config.heads, strict=True):
        if channels % config.groups or channels % heads:
            raise ValueError(f"{key}.channels: {channels} is no multiple of groups {config.groups} and heads {heads}")


def unet_options(config: UNetConfig, channels: tuple[int, int], conditioning: ConditioningConfig) -> dict[str, Any]:
    """The arguments of diffusers' U-Net for ``channels`` in and out."""
    across = config.cross_attention
    return {
        "in_channels": channels[0],
        "out_channels": channels[1],
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in across],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(across)],
        "transformer_layers_per_block": list(config.transformers) or [1] * len(config.channels),
        # Numbers of heads, in spite of the name.
        "attention_head_dim": list(config.heads),
        "norm_num_groups": config.groups,
        "use_linear_projection": config.linear,
        **conditioning.unet_options(),
    }


def new_unet(options: dict[str, Any], size: tuple[int, int]) -> UNet2DConditionModel:
    """An untrained U-Net for latents of ``size``; its last convolution starts at zero, so that a draft is kept."""
    unet = UNet2DConditionModel(sample_size=size[0] if size[0] == size[1] else size, **options)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def open_unet(
    folder: str,
    options: dict[str, Any],
    key: str = "decoder.model.unet",
    dtype: torch.dtype | None = torch.float32,
) -> UNet2DConditionModel:
    """The U-Net of a diffusers folder in ``dtype``, or, with None, in its own.

    Raises:
        ValueError: there is none, or it has another shape than ``options`` say.
    """
    differences(UNet2DConditionModel, folder, options, key)
    return open_model(UNet2DConditionModel, folder, dtype)
