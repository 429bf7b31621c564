"""One table from visual words to global ids, and which ids a stretch of text or image may hold.

LaVIT appends its rows to the language model's own: ``[IMG]``, ``[/IMG]``, then one row a code
(LaVIT, arXiv 2309.04669, section 3.2; 32,000 + 2 + 16,384 ids for LLaMA). Where words say places, a word is a pair of
a code and a gap (:mod:`lavit.tokenizers.places`); all words of one gap stand together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNDERSTANDS = "this model understands pictures and cannot draw: it has no visual words (pretrain.model.port: unmerged)"


@dataclass(frozen=True)
class Vocabulary:
    """Global ids: text ``[0, text_size)``, then the image's begin and end, then ``codes`` × ``gaps`` visual words.

    Without codes pictures are understood and not drawn: where vectors are fed, ``[IMG]`` holds their places.
    """

    text_size: int
    codes: int
    gaps: int = 1

    @property
    def words(self) -> int:
        return self.codes * self.gaps

    @property
    def image_begin(self) -> int:
        return self.text_size

    @property
    def image_end(self) -> int:
        return self.text_size + 1

    @property
    def first_code(self) -> int:
        return self.text_size + 2

    @property
    def size(self) -> int:
        return self.first_code + self.words

    def to_ids(self, codes: Tensor) -> Tensor:
        """Visual words in [0, words) to global ids, any shape, int64."""
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.words):
            raise ValueError(f"codes must lie in [0, {self.words}); got {int(codes.min())} to {int(codes.max())}")
        return codes + self.first_code

    def to_codes(self, ids: Tensor) -> Tensor:
        """Global ids of visual words back to words in [0, words), any shape, int64."""
        codes = ids - self.first_code
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.words):
            raise ValueError(f"ids must be visual words in [{self.first_code}, {self.size}); got {ids.tolist()[:8]}")
        return codes

    def text_mask(self) -> Tensor:
        """(size,) bool: the ids allowed while text is written."""
        return torch.arange(self.size) < self.text_size

    def image_mask(self, may_end: bool) -> Tensor:
        """(size,) bool: the ids allowed inside an image; ``[/IMG]`` only where the image may end."""
        mask = torch.arange(self.size) >= self.first_code
        mask[self.image_end] = may_end
        return mask
