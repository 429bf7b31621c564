"""An encoder alone in a tokenizer's place, for models that understand pictures and draw none (LLaVA, visual words)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lavit.tokenizers.encoders import Encoder
from lavit.tokenizers.tokenizer import ImageTokenizer, TokenizerConfig
from lavit.tokens import Picture, Tokens
from lavit.vocabulary import UNDERSTANDS


class PatchTokenizer(ImageTokenizer):
    """All patches of an image as they are: (B, P, D) standardized features without codes.

    It stands where :class:`~lavit.tokenizers.tokenizer.Tokenizer` does; its words are placeholders.
    """

    places = None

    def __init__(self, config: TokenizerConfig, encoder: Encoder | None = None):
        super().__init__()
        self.config = config
        self.encoder = encoder or Encoder(config.encoder, pretrained=False)

    @torch.no_grad()
    def encode_features(
        self, features: Tensor, *, tokens: int | None = None, ratio: float | None = None, at_most: int | None = None
    ) -> Tokens:
        """A token a patch of (B, P, D) features.

        Raises:
            ValueError: another number of tokens is asked for.
        """
        count, patches = features.shape[:2]
        if (tokens or at_most or patches) < patches or tokens and tokens > patches or ratio not in (None, 1):
            raise ValueError(f"this model reads all {patches} patches of a picture; leave the number of tokens out")
        position = torch.arange(patches, device=features.device).expand(count, -1)
        return Tokens(torch.zeros_like(position), torch.ones_like(position, dtype=torch.bool), features, position)

    def words(self, tokens: Tokens) -> Tensor:
        """(B, P) int64 placeholders."""
        return tokens.codes

    def sayable(self, tokens: Tokens) -> Tensor:
        """(B,) bool: that no image's tokens can be said in words."""
        return tokens.keep.new_zeros(len(tokens.keep))

    def lookup(self, words: Tensor, keep: Tensor) -> Tokens:
        """Raise ValueError: there are no words to be looked up."""
        raise ValueError(UNDERSTANDS)

    def decode(self, tokens: Tokens) -> Tensor:
        """Raise ValueError: nothing is made of tokens."""
        raise ValueError(UNDERSTANDS)


class PatchSet:
    """Pictures of a split by number, as a port reads them that merges nothing.

    ``inputs`` gives the encoder's features (P, D) float32 of the picture with a number, or its pixels (3, S, S), which
    the port encodes.
    """

    def __init__(self, count: int, inputs: Callable[[int], Tensor], patches: int, encoded: bool):
        self._count, self._inputs, self._patches, self._encoded = count, inputs, patches, encoded

    def __len__(self) -> int:
        return self._count

    def codes(self, number: int) -> Tensor:
        """Raise ValueError: there are none."""
        raise ValueError(UNDERSTANDS)

    def picture(self, number: int) -> Picture:
        """The picture with a number; its codes are placeholders."""
        keep = None if self._encoded else torch.ones(self._patches, dtype=torch.bool)
        return Picture(torch.zeros(self._patches, dtype=torch.int64), partial(self._inputs, number), keep)

    def padded(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raise ValueError: there are no codes."""
        raise ValueError(UNDERSTANDS)
