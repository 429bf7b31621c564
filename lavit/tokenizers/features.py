"""Picture sets with the frozen encoder's features, kept on disk where the set is small.

At the paper's size an image's features are 720 KB, so there they are computed when they are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.images import open_image
from lavit.data.order import evenly
from lavit.data.shards import Shards
from lavit.data.split import unit_hash
from lavit.runs import Progress, written_whole
from lavit.tokenizers.encoders import Encoder, to_pixels

BATCH = 64


class PictureSet:
    """One split of a set of pictures: captions or questions, pixels, and features where they were cached."""

    def __init__(self, shards: Shards, features: Path | None = None, fit: str = "pad"):
        self.shards, self.fit = shards, fit
        try:
            self.cached = np.load(features, mmap_mode="r") if features else None
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{features} cannot be read ({error}); remove it and prepare the data again") from None
        if self.cached is not None and len(self.cached) != len(shards):
            raise ValueError(f"{features} holds {len(self.cached)} pictures and the shards {len(shards)}; remove it")

    @functools.cached_property
    def captions(self) -> list[str]:
        """The caption of every picture."""
        return [caption for caption, _ in self._described]

    @functools.cached_property
    def meta(self) -> list[dict[str, Any]]:
        """What is known of every picture."""
        return [meta for _, meta in self._described]

    @functools.cached_property
    def _described(self) -> list[tuple[str, dict[str, Any]]]:
        return [self.shards.describe(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.shards)

    def distinct(self, limit: int | None = None) -> list[int]:
        """The number of one picture of every caption, in no preferred style, evenly thinned to ``limit``."""
        same: dict[str, list[int]] = {}
        for number, caption in enumerate(self.captions):
            same.setdefault(caption, []).append(number)
        numbers = sorted(rows[int(unit_hash(caption) * len(rows))] for caption, rows in same.items())
        return numbers if limit is None else evenly(numbers, limit)

    def pixels(self, numbers: list[int] | Tensor, size: int) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        numbers = [int(n) for n in numbers]
        return read_pixels(self.shards, numbers, size, self.fit)

    def inputs(self, numbers: list[int] | Tensor, size: int) -> Tensor:
        """What a tokenizer reads: (B, P, D) float32 features where they are cached, else (B, 3, size, size) pixels."""
        if self.cached is None:
            return self.pixels(numbers, size)
        return torch.from_numpy(self.cached[np.asarray(numbers)].astype(np.float32))


def read_pixels(shards: Shards, numbers: Iterable[int], size: int, fit: str) -> Tensor:
    """(B, 3, size, size) float32 in [0, 1] of some pictures."""
    return torch.stack([to_pixels(open_image(shards.file(n), f"picture {n}"), size, fit) for n in numbers])


def cache_features(shards: Shards, encoder: Encoder, path: Path, progress: Progress, done: int) -> int:
    """Keep a split's encoder output unless it is there; returns the pictures done so far.

    ``path`` gets the standardized features (n, P, D) float16, and ``*-head.npy`` beside it the pooled pre-classifier
    features (n, C) float32.
    """
    if path.is_file():
        return done + len(shards)
    config = encoder.config
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a run that was killed; it may be large
        stale.unlink()
    with written_whole(path) as draft:
        out = np.lib.format.open_memmap(draft, "w+", np.float16, (len(shards), config.patches, config.width))
        heads = []
        for start in range(0, len(shards), BATCH):
            numbers = range(start, min(start + BATCH, len(shards)))
            raw, head = encoder.raw_and_head(read_pixels(shards, numbers, config.image_size, config.fit))
            out[start : numbers.stop] = encoder.standardize(raw).half().numpy()
            heads.append(head.numpy())
            progress.update(done + numbers.stop)
        out.flush()
        write_array(head_path(path), np.concatenate(heads))
    return done + len(shards)


def head_path(features: Path) -> Path:
    return features.with_name(f"{features.stem}-head.npy")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with written_whole(path) as draft, draft.open("wb") as f:
        np.save(f, array)


def measure_statistics(shards: Shards, encoder: Encoder, path: Path, sample: int = 1024) -> None:
    """Set the encoder's standardization from an even sample of training pictures, kept at ``path`` for later runs."""
    if not path.is_file():
        config = encoder.config
        numbers = np.linspace(0, len(shards) - 1, min(sample, len(shards))).astype(int)
        count, total, square = 0, 0.0, 0.0
        for start in range(0, len(numbers), BATCH):
            images = read_pixels(shards, numbers[start : start + BATCH].tolist(), config.image_size, config.fit)
            raw = encoder.raw(images).flatten(0, 1).double()
            count, total, square = count + len(raw), total + raw.sum(0), square + raw.square().sum(0)
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_array(path, torch.stack([mean, std]).float().numpy())
    mean, std = torch.from_numpy(np.load(path))
    encoder.standardize_by(mean, std)
