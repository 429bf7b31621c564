"""Writing webdataset shards: the same samples give the same bytes, and a folder appears when it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import webdataset

from lavit.data.shards import INDEX, write_scan


class SplitWriter:
    """Writes samples into ``<folder>/<split>-000000.tar`` and so on.

    Everything goes to ``<folder>.partial`` first; :meth:`finish` writes the index there and then gives the folder its
    name. A writer that is left without ``finish`` leaves nothing under that name.

    Args:
        folder: must not exist.
        samples_per_shard: the most samples in one tar.
    """

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self.folder = folder
        self.partial = folder.with_name(f"{folder.name}.partial")
        self.samples_per_shard = samples_per_shard
        self.keys: set[str] = set()
        self._writers: dict[str, webdataset.ShardWriter] = {}
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def write(
        self, split: str, key: str, file: bytes, caption: str, meta: dict[str, Any], suffix: str = "webp"
    ) -> None:
        """Add one sample, whose ``file`` is a picture or a sound. A key that was there before gets a number."""
        unique, copy = key, 2
        while unique in self.keys:
            unique, copy = f"{key}-{copy}", copy + 1
        self.keys.add(unique)
        described = json.dumps(meta, sort_keys=True, ensure_ascii=False)
        sample = {"__key__": unique, suffix: file, "json": described.encode()}
        if caption:
            sample["txt"] = caption.encode()
        self._writer(split).write(sample)

    def _writer(self, split: str) -> webdataset.ShardWriter:
        if split not in self._writers:
            self._writers[split] = webdataset.ShardWriter(
                str(self.partial / f"{split}-%06d.tar"), maxcount=self.samples_per_shard, verbose=0, encoder=False,
                opener=lambda name: open(name, "wb"), mtime=0, user="", group="", mode=0o644,
            )  # fmt: skip
        return self._writers[split]

    def finish(self, about: dict[str, Any]) -> dict[str, Any]:
        """Close the shards, write the index (``about`` and each shard's bytes and sha256) and name the folder."""
        self._close()
        paths = sorted(self.partial.glob("*.tar"))
        shards = {path.name: _fingerprint(path) for path in paths}
        for path in paths:
            write_scan(path)
        index = {**about, "shards": shards}
        (self.partial / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False))
        os.replace(self.partial, self.folder)
        return index

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._close()
            shutil.rmtree(self.partial, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
