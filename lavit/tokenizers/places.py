"""Places that the visual words themselves carry, so that a decoder knows which patch a word came from.

LaVIT never says where a kept patch was: its words must spend part of their meaning on that. At a third of 64 patches
this is log2 C(64, 21) = 56 bits of the 210 that 21 words of 1,024 have, and it costs more than choosing patches gains
(docs/results.md). Here a lattice of anchors is always kept, which bounds the gap between one kept patch and the next
in raster order. A visual word is then a pair of a code and a gap, one id in [0, codes × gaps): the sequence is as long
as before, and its running sum of gaps gives every place back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PlacesConfig:
    """Every ``every``-th patch of a row is an anchor, shifted by half of that from one row to the next."""

    every: int = 4


class Places:
    """Anchors of a square grid, and places written into words and read from them."""

    def __init__(self, grid: int, codes: int, config: PlacesConfig):
        if not 2 <= config.every <= grid:
            raise ValueError(f"tokenizer.places.every is {config.every}; it must be from 2 to the grid's {grid}")
        self.codes, self.patches = codes, grid**2
        anchors = torch.zeros(grid, grid, dtype=torch.bool, device="cpu")
        anchors[0::2, :: config.every] = True
        anchors[1::2, config.every // 2 :: config.every] = True
        self.anchors = anchors.flatten()
        kept = self.anchors.nonzero().flatten()
        # The first gap counts from before the first patch; after the last anchor there may be extras up to the end.
        # From before each patch to the next anchor, or past the last one to the last patch.
        following = torch.searchsorted(kept, torch.arange(self.patches + 1, device="cpu"))
        ends = torch.cat([kept, kept.new_tensor([self.patches - 1])])[following]
        self.reach = ends + 1 - torch.arange(self.patches + 1, device="cpu")
        self.gaps, self.last = int(self.reach.max()), int(kept[-1])

    def allowed(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """What may follow a word at ``position`` (B,) int64, -1 before the first one.

        Returns:
            (B, gaps) bool, the gaps of words that pass over no anchor, and (B,) bool, whether the image may end.
        """
        gaps = torch.arange(1, self.gaps + 1, device="cpu") <= self.reach[position + 1, None]
        return gaps, position >= self.last

    @property
    def words(self) -> int:
        return self.codes * self.gaps

    def write(self, codes: Tensor, position: Tensor, keep: Tensor) -> Tensor:
        """Words (B, N) int64 of codes, positions (B, N) int64 and keep (B, N) bool; 0 where nothing is kept.

        Raises:
            ValueError: a gap that is larger than any between anchors, as after a budget below their number.
        """
        gap = _gaps(position)
        if not self.bridged(position, keep).all():
            raise ValueError(
                f"the kept patches are up to {int(gap[keep].max())} apart and a word can say {self.gaps}: keep at "
                f"least the {int(self.anchors.sum())} anchors"
            )
        return (codes + self.codes * (gap - 1)) * keep

    def bridged(self, position: Tensor, keep: Tensor) -> Tensor:
        """(B,) bool: whether gaps can say all places of an image, of positions (B, N) int64 and keep (B, N) bool."""
        return ((_gaps(position) <= self.gaps) | ~keep).all(1)

    def read(self, words: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and positions (B, N) int64 of words; sums of gaps beyond the grid end at its last patch."""
        gap = words.div(self.codes, rounding_mode="floor") + 1
        position = (gap * keep).cumsum(1).clamp(max=self.patches) - 1
        return words % self.codes * keep, position.clamp(min=0) * keep


def _gaps(position: Tensor) -> Tensor:
    """(B, N) int64 patches from one kept patch to the next, the first counted from before the grid."""
    return position.diff(dim=1, prepend=position.new_full((len(position), 1), -1))
