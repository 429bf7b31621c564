"""Visual words back to patch features: LaVIT's training decoder (arXiv 2309.04669, section 3.1).

A word carries its place in the sequence only; the patch it came from is never transmitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavit.layers.transformer import Block, init_weights, sequence_positions


@dataclass
class FeatureDecoderConfig:
    width: int = 192
    blocks: int = 2
    heads: int = 4
    mlp: int = 768


class FeatureDecoder(nn.Module):
    """P learned queries attend to each other and to the words, and become P patch features."""

    def __init__(
        self, code_width: int, patches: int, feature_width: int, config: FeatureDecoderConfig, backend: str = "sdpa"
    ):
        super().__init__()
        width = config.width
        self.proj_in = nn.Linear(code_width, width)
        # A word is a unit vector: its entries, and so its place's, are of the size 1 / sqrt(width).
        self.position = sequence_positions(patches, width, std=code_width**-0.5)
        self.query = sequence_positions(patches, width, std=1.0)
        self.norm_words = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp, backend) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, feature_width))
        init_weights(self)

    def forward(self, words: Tensor, keep: Tensor) -> Tensor:
        """(B, N, code_width) words and (B, N) bool keep to (B, P, feature_width) features.

        Raises:
            ValueError: more words than an image has patches.
        """
        if words.shape[1] > self.position.shape[0]:
            raise ValueError(f"{words.shape[1]} visual words for an image of {self.position.shape[0]} patches")
        context = self.norm_words(self.proj_in(words) + self.position[: words.shape[1]])
        x = self.query.expand(words.shape[0], -1, -1)
        mask = keep[:, None, None, :]
        for block in self.blocks:
            x = block(x, context, context_mask=mask)
        return self.out(self.norm(x))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last dimension in fp32: (..., D) and (..., D) to (...)."""
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-6)
