"""How pictures that are read enter the language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.tokens import Slots

PROJECTORS = ("linear", "mlp")


class Port(nn.Module):
    """Features to vectors of the language model's width, one a visual token.

    Without ``merger`` it projects what it gets (S, D). With one, which is trained beside the language model while the
    tokenizer's own stays as it is and makes the ids, it merges the patches (I, P, D) of pictures by itself. With
    ``encoder`` it makes the patches of pixels (I, 3, S, S), to be merged or projected as they are.

    Args:
        width: D of what is projected.
        hidden: the language model's width.
        merger: a module of patches and kept ones to merged vectors, as :class:`lavit.tokenizers.merger.Merger` is.
        encoder: the frozen encoder, which stands beside the port: it is no part of its weights and its checkpoints.
        projector: "linear", or "mlp" for two layers with a GELU between them (LLaVA-1.5, arXiv 2310.03744).

    Raises:
        ValueError: another projector.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        merger: nn.Module | None = None,
        encoder: nn.Module | None = None,
        projector: str = "linear",
    ):
        super().__init__()
        if projector not in PROJECTORS:
            raise ValueError(f"model.projector '{projector}' is unknown; choose {' or '.join(PROJECTORS)}")
        self.merger = merger
        self._beside = (encoder,)  # in a tuple, where neither the optimizer nor ZeRO finds it
        self.proj = nn.Linear(width, hidden)
        nn.init.normal_(self.proj.weight, std=0.02)
        self.out = nn.Linear(hidden, hidden) if projector == "mlp" else None

    @property
    def merges(self) -> bool:
        return self.merger is not None

    @property
    def reads_patches(self) -> bool:
        """Whether it is given patches or pixels, with the kept ones, instead of a vector for each place."""
        return self.merges or self._beside != (None,)

    def forward(self, slots: Slots | None) -> Tensor:
        """(S, hidden) of the slots; (0, hidden) of none.

        Raises:
            ValueError: patches for a port that does not merge, or the reverse, or pixels without an encoder.
        """
        dtype = self.proj.weight.dtype
        if slots is None:
            # Nothing to feed still passes through the port: under ZeRO all ranks must reduce the same gradients.
            return self.projected(self._nothing().to(self.proj.weight))[:0]
        if self.reads_patches != (slots.keep is not None):
            raise ValueError(f"the port reads {'patches' if self.reads_patches else 'features'}, and gets the other")
        vectors = slots.features.to(dtype)
        if vectors.dim() == 4:
            vectors = self._encoded(vectors)
        if self.merges:
            vectors = self.merger.merge(vectors, slots.keep)
        return self.projected(vectors[slots.keep] if vectors.dim() == 3 else vectors)

    def projected(self, vectors: Tensor) -> Tensor:
        """(..., D) features or merged vectors to (..., hidden)."""
        projected = self.proj(vectors)
        return projected if self.out is None else self.out(F.gelu(projected))

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> Tensor:
        """(I, P, D) standardized patches of pixels (I, 3, S, S)."""
        (encoder,) = self._beside
        if encoder is None:
            raise ValueError("the port reads patches and has no encoder to make them of pixels")
        return encoder.eval().to(pixels.device)(pixels).to(pixels.dtype)

    def _nothing(self) -> Tensor:
        if not self.merges:
            return self.proj.weight.new_zeros(1, self.proj.in_features)
        patches = self.proj.weight.new_zeros(1, self.merger.patches, self.merger.feature_width)
        return self.merger.merge(patches, torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device))
