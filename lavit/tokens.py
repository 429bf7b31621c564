"""The value types that pass between the rooms of the house: tokens of an image, spans of a document, packed batches.

They are NamedTuples of tensors because DeepSpeed's ZeRO-3 hooks look into tuples but not into dataclasses.
Shape letters: B items, N tokens (longest item), P patches, D feature width, T packed length, S slots of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100
# Vectors, or what reads them from disk: of a step's documents a rank reads only those of its own rows.
Vectors = Tensor | Callable[[], Tensor]


def read_vectors(vectors: Vectors) -> Tensor:
    """The vectors themselves."""
    return vectors() if callable(vectors) else vectors


class Tokens(NamedTuple):
    """Visual tokens of a batch, left-aligned.

    Attributes:
        codes: (B, N) int64 in [0, K), 0 where nothing is kept; None before quantization.
        keep: (B, N) bool, True = a real token.
        features: (B, N, D) float merged features before quantization; None when looked up from codes.
        position: (B, N) int64 patch index a token came from; None when unknown. LaVIT never transmits it.
    """

    codes: Tensor | None
    keep: Tensor
    features: Tensor | None
    position: Tensor | None


class Picture(NamedTuple):
    """A picture as a language model is shown it.

    Attributes:
        codes: (n,) int64 visual words.
        features: (n, D) float merged features, for a port that projects them; all encoder patches (P, D), for one that
            merges them itself; or pixels (3, S, S), for one that encodes them too.
        keep: (P,) bool which of the patches became words; None with merged features.
    """

    codes: Tensor
    features: Vectors
    keep: Tensor | None = None


class Feed(IntEnum):
    """What enters the language model at a span's places."""

    IDS = 0
    FEATURES = 1


class Learn(IntEnum):
    """What the language model must predict at a span's places."""

    NONE = 0
    IDS = 1


class Span(NamedTuple):
    """A stretch of one modality in a document.

    Attributes:
        modality: "text", "image" or "audio".
        ids: (n,) int64 global ids; where vectors are fed they are only placeholders or targets.
        features: float, what the modality's port reads: (n, D) aligned with ``ids``, or with ``keep`` a picture's
            patches or pixels, of which the kept patches are aligned with them; None for Feed.IDS.
        feed: what enters the model.
        learn: what is predicted.
        keep: (P,) bool, with patches.
    """

    modality: str
    ids: Tensor
    features: Vectors | None = None
    feed: Feed = Feed.IDS
    learn: Learn = Learn.IDS
    keep: Tensor | None = None


class Slots(NamedTuple):
    """Where vectors instead of id embeddings enter a packed batch.

    Attributes:
        index: (S,) int64 flat places in B*T, increasing.
        features: (S, D) float vectors for the port; or of I images patches (I, P, D) or pixels (I, 3, S, S).
        keep: (I, P) bool, S of them True, in the order of ``index``; None with vectors.
    """

    index: Tensor
    features: Tensor
    keep: Tensor | None = None


class PackedBatch(NamedTuple):
    """Documents packed into rows.

    Attributes:
        ids: (B, T) int64 global ids.
        labels: (B, T) int64 next ids, already shifted, -100 = nothing to learn.
        position: (B, T) int64, restarts at each document.
        document: (B, T) int64 which document of the row a token is of, -1 = padding.
        slots: by modality, the places where vectors are fed.
        total: () float32 learned tokens that the loss is divided by; None = those of this batch, on average over ranks.
        places: () float32 places where vectors are fed, as ``total``, that the loss at these is divided by.
        counts: what the whole step takes in, over all ranks and micro-batches, for the log.
    """

    ids: Tensor
    labels: Tensor
    position: Tensor
    document: Tensor
    slots: dict[str, Slots]
    total: Tensor | None = None
    places: Tensor | None = None
    counts: dict[str, float] | None = None


class Rows(NamedTuple):
    """Where packed rows of a ragged batch stand in its padded form, left-aligned.

    Attributes:
        place: (T,) int64 flat places in B*N, increasing; T = the items of all images together.
        source: (T,) int64 flat places in B*P that the rows were taken from.
        real: (B, N) bool, True where a row stands; N = the most rows of any item.
    """

    place: Tensor
    source: Tensor
    real: Tensor

    @classmethod
    def of(cls, keep: Tensor) -> Rows:
        """The rows of the kept entries of (B, P) bool ``keep``, in raster order."""
        counts = keep.sum(1)
        length = int(counts.max())
        real = torch.arange(length, device=keep.device)[None] < counts[:, None]
        return cls(real.flatten().nonzero().flatten(), keep.flatten().nonzero().flatten(), real)

    def take(self, x: Tensor) -> Tensor:
        """The packed rows (T, D) of (B, P, D)."""
        return x.flatten(0, 1)[self.source]

    def pad(self, rows: Tensor) -> Tensor:
        """(T, D) packed rows to (B, N, D), zero where nothing stands."""
        out = rows.new_zeros(self.real.numel(), rows.shape[-1])
        return out.index_copy(0, self.place, rows).view(*self.real.shape, rows.shape[-1])

    def pack(self, padded: Tensor) -> Tensor:
        """(B, N, D) to the packed rows (T, D)."""
        return padded.flatten(0, 1)[self.place]


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of nested NamedTuples, dicts and tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    return batch
