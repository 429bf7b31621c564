"""Extracted tokens on disk: a folder a shard of pictures, opened without reading it whole.

``words.npy`` (n,) int32 holds the visual words of the shard's pictures one after another, ``start.npy``
(pictures + 1,) int64 where each picture's words begin, ``places.npy`` (n,) int32 the patches they came from,
``features.npy`` (n, D) float16 the merged features where they were asked for, ``about.json`` the pictures' keys, what
could not be read, and whose codes they are.
"""

from __future__ import annotations

import bisect
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lavit.runs import read_json, write_json
from lavit.tokens import Picture

OPEN = 64  # shards whose files are open at the same time: there may be more than a process may have files


class Extracted(NamedTuple):
    """Tokens of one picture: words (n,) int64, merged features (n, D) float and the patches (n,) int64 they came from.

    All are empty if it could not be read.
    """

    words: Tensor
    features: Tensor
    places: Tensor


def write_shard(folder: Path, pictures: Sequence[Extracted], about: dict[str, Any], features: bool) -> None:
    """Write a shard's folder, whole or not at all.

    ``about`` has ``keys``, one a picture, ``skipped``, of keys why they have no tokens, and ``made_by``, the digest of
    the tokenizer.
    """
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    draft.mkdir(parents=True)
    start = np.concatenate([[0], np.cumsum([len(p.words) for p in pictures], dtype=np.int64)])
    nothing = torch.zeros(0, dtype=torch.int64)
    np.save(draft / "words.npy", torch.cat([nothing, *(p.words for p in pictures)]).int().cpu().numpy())
    np.save(draft / "places.npy", torch.cat([nothing, *(p.places for p in pictures)]).int().cpu().numpy())
    np.save(draft / "start.npy", start.astype(np.int64))
    if features and pictures:
        np.save(draft / "features.npy", torch.cat([p.features for p in pictures]).half().cpu().numpy())
    write_json(draft / "about.json", about)
    draft.rename(folder)


class CodeSet:
    """The extracted tokens of several shards by the number of the picture, in the order of the shards.

    Raises:
        ValueError: a shard that is missing or broken.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._start = [_open(folder).start for folder in self.folders]
        self._first = [0, *accumulate(len(start) - 1 for start in self._start)]
        self._opened = functools.lru_cache(maxsize=OPEN)(lambda shard: _open(self.folders[shard]))

    def __len__(self) -> int:
        return self._first[-1]

    def codes(self, number: int) -> Tensor:
        """(n,) int64 visual words of a picture."""
        shard, words = self._place(number)
        return torch.from_numpy(self._opened(shard).words[words].astype(np.int64))

    def features(self, number: int) -> Tensor:
        """(n, D) float32 merged features of a picture.

        Raises:
            ValueError: they were not extracted.
        """
        shard, words = self._place(number)
        features = self._opened(shard).features
        if features is None:
            raise ValueError(f"{self.folders[shard]} has no features; extract with extraction.features: true")
        return torch.from_numpy(features[words].astype(np.float32))

    def places(self, number: int) -> Tensor:
        """(n,) int64 the patches that a picture's words came from, increasing.

        Raises:
            ValueError: they were not extracted.
        """
        shard, words = self._place(number)
        places = self._opened(shard).places
        if places is None:
            raise ValueError(f"{self.folders[shard]} has no places; remove it and extract again")
        return torch.from_numpy(places[words].astype(np.int64))

    def picture(self, number: int) -> Picture:
        """A picture as a port reads it that projects merged features; they are read when they are needed."""
        return Picture(self.codes(number), functools.partial(self.features, number))

    def counts(self) -> Tensor:
        """(pictures,) int64 tokens of each; none where a picture could not be read."""
        return torch.cat([torch.from_numpy(np.diff(start)) for start in self._start])

    def padded(self, numbers: list[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, N) int64 and keep (B, N) bool of several pictures."""
        return pad_codes([self.codes(int(n)) for n in numbers])

    def about(self) -> dict[str, Any]:
        """The keys of all pictures and, by key, why some have no tokens."""
        parts = [read_json(folder / "about.json") for folder in self.folders]
        skipped = {key: reason for part in parts for key, reason in part["skipped"].items()}
        return {"keys": [key for part in parts for key in part["keys"]], "skipped": skipped}

    def _place(self, number: int) -> tuple[int, slice]:
        if not 0 <= number < len(self):
            raise IndexError(f"picture {number} of {len(self)}")
        shard = bisect.bisect_right(self._first, number) - 1
        start = self._start[shard][number - self._first[shard] :][:2]
        return shard, slice(int(start[0]), int(start[1]))


class PatchCodeSet(CodeSet):
    """The same for a port that merges by itself: its pictures come with all their patches.

    ``inputs`` gives the encoder's features (P, D) float32 of the picture with a number, or its pixels (3, S, S), of
    which the port makes ``patches``, P.
    """

    def __init__(self, folders: Sequence[Path], inputs: Callable[[int], Tensor], patches: int):
        super().__init__(folders)
        self._inputs, self._patches = inputs, patches

    def picture(self, number: int) -> Picture:
        keep = torch.zeros(self._patches, dtype=torch.bool)
        keep[self.places(number)] = True
        return Picture(self.codes(number), functools.partial(self._inputs, number), keep)


class _Shard(NamedTuple):
    words: np.ndarray
    start: np.ndarray
    places: np.ndarray | None
    features: np.ndarray | None


def _open(folder: Path) -> _Shard:
    if not folder.is_dir():
        raise ValueError(f"no codes {folder}; run tokenizer.extract first")
    try:
        words, start = np.load(folder / "words.npy", mmap_mode="r"), np.load(folder / "start.npy")
        paths = (folder / "places.npy", folder / "features.npy")
        places, features = (np.load(path, mmap_mode="r") if path.is_file() else None for path in paths)
        if any(part is not None and len(part) != start[-1] for part in (words, places, features)):
            raise ValueError(f"{start[-1]} words are told and {len(words)} are there")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder} cannot be read ({error}); remove it and extract again") from None
    return _Shard(words, start, places, features)


def pad_codes(codes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged codes to (B, N) int64, left-aligned, and (B, N) bool which are real."""
    lengths = torch.tensor([len(c) for c in codes])
    keep = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    out = torch.zeros(keep.shape, dtype=torch.int64)
    out[keep] = torch.cat(codes)
    return out, keep
