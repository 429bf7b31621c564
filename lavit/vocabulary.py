"""One table from visual words and speech codes to global ids, and which ids a stretch of one modality may hold.

LaVIT appends its rows to the language model's own: ``[IMG]``, ``[/IMG]``, then one row a code
(LaVIT, arXiv 2309.04669, section 3.2; 32,000 + 2 + 16,384 ids for LLaMA). Where words say places, a word is a pair of
a code and a gap (:mod:`lavit.tokenizers.places`); all words of one gap stand together. Speech comes after that in the
same way, ``[AUD]``, ``[/AUD]``, then one row a code (TEAL, arXiv 2311.04589).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNDERSTANDS = "this model understands pictures and cannot draw: it has no visual words (pretrain.model.port: unmerged)"
SILENT = "this model has no codes of speech; train one with tokenizer.speech and data.speech"


class Stretch(NamedTuple):
    """The ids of one modality, which stand together: its begin, its end, then ``words`` ids."""

    begin: int
    words: int

    @property
    def end(self) -> int:
        return self.begin + 1

    @property
    def first(self) -> int:
        return self.begin + 2

    @property
    def stop(self) -> int:
        """The id after its last."""
        return self.first + self.words

    def to_ids(self, codes: Tensor) -> Tensor:
        """Words in [0, words) to global ids, any shape, int64."""
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.words):
            raise ValueError(f"codes must lie in [0, {self.words}); got {int(codes.min())} to {int(codes.max())}")
        return codes + self.first

    def to_codes(self, ids: Tensor) -> Tensor:
        """Global ids back to words in [0, words), any shape, int64."""
        codes = ids - self.first
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < self.words):
            raise ValueError(f"ids must lie in [{self.first}, {self.stop}); got {ids.flatten().tolist()[:8]}")
        return codes


@dataclass(frozen=True)
class Vocabulary:
    """Global ids: text ``[0, text_size)``, then the image's begin and end, then ``codes`` × ``gaps`` visual words.

    With ``sounds`` the begin and end of speech and so many codes of it follow. Without codes pictures are understood
    and not drawn: where vectors are fed, ``[IMG]`` holds their places.

    Raises:
        ValueError: speech beside words that say places.
    """

    text_size: int
    codes: int
    gaps: int = 1
    sounds: int = 0

    def __post_init__(self) -> None:
        if self.sounds and self.gaps > 1:
            raise ValueError("speech has rows of codes alone; set tokenizer.model.places to null beside it")

    @property
    def words(self) -> int:
        return self.codes * self.gaps

    @property
    def image(self) -> Stretch:
        return Stretch(self.text_size, self.words)

    @property
    def audio(self) -> Stretch:
        return Stretch(self.image.stop, self.sounds)

    @property
    def image_begin(self) -> int:
        return self.image.begin

    @property
    def image_end(self) -> int:
        return self.image.end

    @property
    def first_code(self) -> int:
        return self.image.first

    @property
    def size(self) -> int:
        return self.audio.stop if self.sounds else self.image.stop

    @property
    def rows(self) -> int:
        """Rows beside those of text: of an image's begin and end, of every code, and as many of speech."""
        return 2 + self.codes + (2 + self.sounds if self.sounds else 0)

    def to_ids(self, codes: Tensor) -> Tensor:
        """Visual words in [0, words) to global ids, any shape, int64."""
        return self.image.to_ids(codes)

    def to_codes(self, ids: Tensor) -> Tensor:
        """Global ids of visual words back to words in [0, words), any shape, int64."""
        return self.image.to_codes(ids)

    def by_modality(self, ids: Tensor) -> dict[str, Tensor]:
        """Masks, shaped as ``ids``, of those of "text", "image" and, where there are sounds, "audio"; none is < 0."""
        masks = {
            "text": (ids >= 0) & (ids < self.text_size),
            "image": (ids >= self.text_size) & (ids < self.image.stop),
        }
        return masks | ({"audio": ids >= self.audio.begin} if self.sounds else {})

    def text_mask(self) -> Tensor:
        """(size,) bool: the ids allowed while text is written."""
        return torch.arange(self.size) < self.text_size

    def image_mask(self, may_end: bool) -> Tensor:
        """(size,) bool: the ids allowed inside an image; ``[/IMG]`` only where the image may end."""
        number = torch.arange(self.size)
        mask = (number >= self.first_code) & (number < self.image.stop)
        mask[self.image_end] = may_end
        return mask
