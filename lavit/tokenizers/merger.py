"""The merger: kept patches take in what the dropped ones say, as LaVIT's eq. 2 has it.

LaVIT, arXiv 2309.04669, section 3.1. Only kept patches are computed, so that what is dropped costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavit.layers.transformer import Block, init_weights, sequence_positions
from lavit.tokenizers.selector import Selection
from lavit.tokens import Rows


@dataclass
class MergerConfig:
    """``blocks`` pre-norm blocks of ``width``; the paper's size is 12 × 1408 with 16 heads and MLP 6144.

    ``position`` adds a learned place to every patch before merging. A ViT's features know where they are (the paper
    adds nothing); a convolutional encoder's do not, and a word could not say what it describes.
    ``soft_mask`` computes all patches under the factor masks of the published code, to open its weights with equal
    outputs.
    """

    width: int = 192
    blocks: int = 2
    heads: int = 4
    mlp: int = 768
    position: bool = False
    soft_mask: bool = False


class Merger(nn.Module):
    """Kept patches attend to each other causally and to the dropped ones (paper, eq. 2), ``blocks`` times.

    Only kept patches are computed, packed without padding; what is dropped costs its keys and values.
    """

    def __init__(self, feature_width: int, patches: int, config: MergerConfig, backend: str = "sdpa"):
        super().__init__()
        self.config, self.feature_width, self.patches = config, feature_width, patches
        self.norm_in = nn.LayerNorm(feature_width)
        same = feature_width == config.width
        self.proj_in = nn.Identity() if same else nn.Linear(feature_width, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp, backend) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width)
        self.position = sequence_positions(patches, config.width, std=0.5) if config.position else None
        init_weights(self)

    def forward(self, features: Tensor, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
        """Merge.

        Args:
            features: (B, P, D_in) patches.
            selection: what to keep.

        Returns:
            merged (B, N, D), keep (B, N) bool, position (B, N) int64; N = the most tokens of any image.
        """
        rows = Rows.of(selection.keep)
        if self.config.soft_mask:
            merged = rows.take(self.dense(features, selection, soft=True))
        else:
            merged = self.norm(self._gathered(self._embedded(features), selection, rows))
        position = rows.source % features.shape[1]
        return rows.pad(merged), rows.real, rows.pad(position[:, None])[..., 0]

    def merge(self, features: Tensor, keep: Tensor) -> Tensor:
        """(T, D) merged vectors of the kept (B, P) bool of (B, P, D_in) patches, image by image in raster order."""
        merged, real, _ = self(features, Selection.of(keep))
        return merged[real]

    def _embedded(self, features: Tensor) -> Tensor:
        x = self.proj_in(self.norm_in(features))
        return x if self.position is None else x + self.position

    def _gathered(self, x: Tensor, selection: Selection, rows: Rows) -> Tensor:
        """(T, D) packed tokens of (B, P, D) patches."""
        rest = Rows.of(~selection.keep)
        gate = selection.gate[..., None].to(x.dtype)
        # Gates are 1 where gathered; multiplying carries the straight-through gradient to the selector.
        kept, context = rows.take(x * gate), rest.take(x * (1 - gate))
        length = rows.real.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        self_mask = (causal & rows.real[:, None, :])[:, None]
        for block in self.blocks:
            kept = block(kept, context, self_mask, rest.real[:, None, None, :], rows, rest)
        return kept

    def dense(self, features: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """The same merger on all patches under masks: (B, P, D), of which the kept rows count.

        The plain reading of the paper, with as much work for a dropped patch as for a kept one: what the gathered form
        is tested and timed against. ``soft`` takes the masks as factors, as the published code does.
        """
        x, gate = self._embedded(features), selection.gate
        patches = x.shape[1]
        causal = torch.ones(patches, patches, dtype=torch.bool, device=x.device).tril()
        itself = torch.eye(patches, dtype=torch.bool, device=x.device)
        if soft:
            kept = context = x
            self_mask = torch.where(itself, 1.0, gate[:, None, :]) * causal
            cross_mask = (1 - gate)[:, None, :]
        else:
            kept, context = x * gate[..., None].to(x.dtype), x * (1 - gate)[..., None].to(x.dtype)
            self_mask = causal & (selection.keep[:, None, :] | itself)
            cross_mask = ~selection.keep[:, None, :]
        for block in self.blocks:
            kept = block(kept, context, self_mask[:, None], cross_mask[:, None])
        return self.norm(kept)
