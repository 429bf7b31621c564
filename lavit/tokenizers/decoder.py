"""Visual words back to patch features: LaVIT's training decoder (arXiv 2309.04669, section 3.1).

A word carries its place in the sequence only, unless the words say places (:mod:`lavit.tokenizers.places`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavit.layers.transformer import Block, grid_positions, init_weights, sequence_positions


@dataclass
class FeatureDecoderConfig:
    """``norm_words`` normalises the words before the blocks attend to them; the published weights do without."""

    width: int = 192
    blocks: int = 2
    heads: int = 4
    mlp: int = 768
    norm_words: bool = True


class FeatureDecoder(nn.Module):
    """P learned queries attend to each other and to the words, and become P patch features.

    With ``places`` the patch of every word is known, and a word gets its patch's query as its place.
    """

    def __init__(
        self,
        code_width: int,
        grid: int,
        feature_width: int,
        config: FeatureDecoderConfig,
        backend: str = "sdpa",
        places: bool = False,
    ):
        super().__init__()
        width, patches, self.places = config.width, grid**2, places
        self.proj_in = nn.Linear(code_width, width)
        if places:
            # Waves have a root mean square of √½; these are of size 1 like the other queries.
            self.query = nn.Parameter(grid_positions(grid, width) * 2**0.5)
        else:
            # A word is a unit vector: its entries, and so its place's, are of the size 1 / sqrt(width).
            self.position = sequence_positions(patches, width, std=code_width**-0.5)
            self.query = sequence_positions(patches, width, std=1.0)
        self.norm_words = nn.LayerNorm(width) if config.norm_words else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp, backend) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, feature_width))
        init_weights(self)

    def forward(self, words: Tensor, keep: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, N, code_width) words and (B, N) bool keep to (B, P, feature_width) features.

        position: (B, N) int64 patches of the words, needed with ``places`` and without effect otherwise.

        Raises:
            ValueError: more words than an image has patches, or no position where places are known.
        """
        if words.shape[1] > len(self.query):
            raise ValueError(f"{words.shape[1]} visual words for an image of {len(self.query)} patches")
        if self.places and position is None:
            raise ValueError("this decoder needs the positions of its words; look words up with Tokenizer.lookup")
        places = self.query[position] * 0.5**0.5 if self.places else self.position[: words.shape[1]]
        context = self.norm_words(self.proj_in(words) + places)
        x = self.query.expand(words.shape[0], -1, -1)
        mask = keep[:, None, None, :]
        for block in self.blocks:
            x = block(x, context, context_mask=mask)
        return self.out(self.norm(x))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last dimension in fp32: (..., D) and (..., D) to (...)."""
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-6)
