"""What the U-Net reads of the reconstructed features.

LaVIT puts one projection in the place of SD-1.5's text; its larger decoder has SDXL's shape: two projections in the
place of the two text encoders, and a pooled vector beside the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lavit.config import OneOf
from lavit.layers.attention import attention

TIME_IDS = 6  # original height and width, crop from the top and left, target height and width


@dataclass
class SDConfig:
    """One projection to ``width``; ``positions`` adds a learned vector a patch.

    Of unknown features the U-Net reads ``unconditional`` learned vectors: 1 in the place of each, or one a patch.
    """

    width: int = 128
    positions: bool = True
    unconditional: int = 1


@dataclass
class SDXLConfig:
    """Two projections side by side; the second one's is also pooled. ``time`` is the width of each time id's waves."""

    widths: list[int] = field(default_factory=lambda: [768, 1280])
    heads: int = 20
    time: int = 256


@dataclass
class ConditioningConfig(OneOf):
    sd: SDConfig | None = None
    sdxl: SDXLConfig | None = None

    @property
    def width(self) -> int:
        """Of what the U-Net's cross-attention reads."""
        return self.sd.width if self.chosen()[0] == "sd" else sum(self.sdxl.widths)

    def unet_options(self) -> dict:
        """What diffusers' U-Net must be told."""
        options = {"cross_attention_dim": self.width, "addition_embed_type": None}
        if self.sdxl is None:
            return options
        return options | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.sdxl.time,
            "projection_class_embeddings_input_dim": self.sdxl.widths[-1] + TIME_IDS * self.sdxl.time,
        }


class Context(NamedTuple):
    """states (B, P, W); added: what SDXL's U-Net reads beside, by diffusers' names, else None."""

    states: Tensor
    added: dict[str, Tensor] | None


class SDConditioning(nn.Module):
    """Features (B, P, D) to states (B, P, W), with learned vectors in their place where they are unknown."""

    def __init__(self, config: SDConfig, feature_width: int, patches: int):
        super().__init__()
        if config.unconditional not in (1, patches):
            raise ValueError(
                f"decoder.model.conditioning.sd.unconditional is {config.unconditional}; choose 1, or {patches}, one a "
                "patch"
            )
        self.project = nn.Linear(feature_width, config.width)
        self.position = nn.Parameter(torch.randn(patches, config.width) * 0.02) if config.positions else None
        self.unconditional = nn.Parameter(torch.randn(config.unconditional, config.width) * 0.02)

    def forward(self, features: Tensor, drop: Tensor, size: tuple[int, int]) -> Context:
        """drop: (B,) bool, where nothing is known; size: height and width of the image in pixels."""
        states = self.project(features)
        if self.position is not None:
            states = states + self.position
        return Context(torch.where(drop[:, None, None], self.unconditional.to(states.dtype), states), None)


class SDXLConditioning(nn.Module):
    """Features (B, P, D) to states (B, P, Σ widths) and a pooled vector; zeros where they are unknown."""

    def __init__(self, config: SDXLConfig, feature_width: int, patches: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(feature_width, width) for width in config.widths)
        self.pool = AttentionPool(config.widths[-1], patches, config.heads)

    def forward(self, features: Tensor, drop: Tensor, size: tuple[int, int]) -> Context:
        """drop: (B,) bool, where nothing is known; size: height and width of the image in pixels."""
        parts = [project(features) for project in self.project]
        known = ~drop[:, None]
        ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=features.device)
        added = {"text_embeds": self.pool(parts[-1]) * known, "time_ids": ids.expand(len(features), -1)}
        return Context(torch.cat(parts, dim=-1) * known[..., None], added)


class AttentionPool(nn.Module):
    """(B, P, W) to (B, W): their mean attends to itself and to them (CLIP, arXiv 2103.00020, section 2.4)."""

    def __init__(self, width: int, patches: int, heads: int):
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.position
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        pooled = attention(split(self.query(x[:, :1])), split(self.key(x)), split(self.value(x)))
        return self.out(pooled.transpose(1, 2).flatten(1))


def new_conditioning(config: ConditioningConfig, feature_width: int, patches: int) -> nn.Module:
    kind, choice = config.chosen()
    return (SDConditioning if kind == "sd" else SDXLConditioning)(choice, feature_width, patches)
