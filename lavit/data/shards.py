"""webdataset shards: ``key.webp`` (``key.flac`` of a sound), ``key.txt`` and ``key.json`` in a tar; read by index."""

from __future__ import annotations

import bisect
import functools
import hashlib
import io
import itertools
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = ("webp", "jpg", "jpeg", "png", "flac")
INDEX = "index.json"
SCAN = ".places.npz"
OPEN = 64  # tars that are open at the same time: there may be more than a process may have files


class ShardError(ValueError):
    """Shards that are missing, unfinished or broken."""


class Sample(NamedTuple):
    """One sample of a shard.

    Args:
        key: its name.
        file: the bytes of the picture's or the sound's file (WebP or FLAC where this project wrote it).
        caption: the text, empty if the sample has none.
        meta: its json, empty if it has none.
    """

    key: str
    file: bytes
    caption: str
    meta: dict[str, Any]


class Scan(NamedTuple):
    """Where the samples of one tar lie; 16 bytes a file, because there may be millions.

    Attributes:
        keys: the samples' names.
        offset: (n, 3) int64 where file, caption and json begin.
        size: (n, 3) int64 bytes of each, -1 for what a sample does not have.
    """

    keys: list[str]
    offset: np.ndarray
    size: np.ndarray


FILE, CAPTION, META = range(3)


class Shards:
    """Samples of webdataset tars by index, in the order they were written.

    The tars' headers are read once; after that a sample is a few reads at known places, in any order. An object of
    this class can be pickled and used after a fork, and by several threads.

    Args:
        source: a folder that :func:`lavit.data.prepare.prepare` wrote, any other folder of tars, one tar, or a list
            of tars. Tars of img2dataset are read as they are.
        split: ``train``, ``validation`` or ``test``; reads only the tars named ``<split>-*.tar``.

    Raises:
        ShardError: no tars, an unfinished folder, or a tar that is cut, changed or not a tar.
    """

    def __init__(self, source: str | Path | list[str | Path], split: str | None = None) -> None:
        self.paths = _tars(source, split)
        self._files: dict[int, io.FileIO] = {}
        self._lock = threading.Lock()
        scans = [_known_scan(path) or scan(path) for path in self.paths]
        self.keys = [key for found in scans for key in found.keys]
        self._offset = np.concatenate([found.offset for found in scans])
        self._size = np.concatenate([found.size for found in scans])
        self._first = [0, *itertools.accumulate(len(found.keys) for found in scans)]

    @functools.cached_property
    def digest(self) -> str:
        """12 hexadecimal digits that change with any picture of a prepared folder, or the name or size of a tar."""
        index = self.paths[0].parent / INDEX
        known = json.loads(index.read_text())["shards"] if index.is_file() else {}
        about = [(path.name, known.get(path.name) or path.stat().st_size) for path in self.paths]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        caption, meta = self.describe(index)
        return Sample(self.keys[index], self.file(index), caption, meta)

    def file(self, index: int) -> bytes:
        """The bytes of a sample's picture or sound.

        Raises:
            ShardError: the sample has none.
        """
        data = self._read(index, FILE)
        if data is None:
            raise ShardError(f"sample '{self.keys[index]}' has no image ({', '.join(SUFFIXES)})")
        return data

    def describe(self, index: int) -> tuple[str, dict[str, Any]]:
        """Caption and meta of a sample, without reading its picture."""
        caption, meta = self._read(index, CAPTION), self._read(index, META)
        return (caption or b"").decode("utf-8"), json.loads(meta) if meta is not None else {}

    def differ(self) -> bool:
        """Whether any two captions differ."""
        return any(self._read(index, CAPTION) != self._read(0, CAPTION) for index in range(1, len(self)))

    def by_tar(self) -> list[tuple[Path, range]]:
        """Each tar with the indices of its samples."""
        return [(path, range(self._first[i], self._first[i + 1])) for i, path in enumerate(self.paths)]

    def reader(self, index: int) -> Callable[[], bytes]:
        """A call that gives the bytes of a sample's file."""
        return functools.partial(self.file, index)

    def _read(self, index: int, part: int) -> bytes | None:
        index = range(len(self))[index]  # also from the end; out of it is an IndexError
        offset, size = int(self._offset[index, part]), int(self._size[index, part])
        if size < 0:
            return None
        shard = bisect.bisect_right(self._first, index) - 1
        file = self._file(shard)
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise ShardError(f"shard {self.paths[shard]} was cut while it was read; write it again")
        return data

    def _file(self, shard: int) -> io.FileIO:
        """The open tar; of many only the last ones used stay open, until nobody reads them any more."""
        with self._lock:
            file = self._files.pop(shard, None) or io.FileIO(self.paths[shard])
            self._files[shard] = file
            if len(self._files) > OPEN:
                del self._files[next(iter(self._files))]
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_files", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _files={}, _lock=threading.Lock())


def read_index(folder: str | Path) -> dict[str, Any]:
    """The index of a folder of shards: counts, shards with sha256, skipped items, licences, config.

    Raises:
        ShardError: there is none, so the folder was not finished.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise ShardError(f"{folder} has no {INDEX}: it was not finished; prepare the data again")
    return json.loads(path.read_text())


def _tars(source: str | Path | list[str | Path], split: str | None) -> list[Path]:
    if isinstance(source, list):
        paths = [Path(path) for path in source]
    elif Path(source).is_dir():
        paths = _finished(Path(source)) if (Path(source) / INDEX).is_file() else sorted(Path(source).glob("*.tar"))
    else:
        paths = [Path(source)]
    if split is not None:
        paths = [path for path in paths if path.name.startswith(f"{split}-")]
    if not paths:
        wanted = f" of split '{split}'" if split else ""
        raise ShardError(f"no shards{wanted} in {source}; prepare the data first, or check the split's share")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ShardError(f"no shard or folder {missing[0]}")
    return paths


def _finished(folder: Path) -> list[Path]:
    """The shards an index names, each of the size that it says."""
    shards = read_index(folder)["shards"]
    for name, about in shards.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            raise ShardError(
                f"shard {path} is missing or cut (it had {about['bytes']} bytes); remove {folder} and "
                "prepare the data again"
            )
    return [folder / name for name in shards]


def write_scan(path: Path) -> None:
    """Keep beside a tar where its samples lie: to scan millions of headers takes every process many minutes."""
    found = scan(path)
    keys = np.frombuffer("\n".join(found.keys).encode(), dtype=np.uint8)
    np.savez(path.with_suffix(SCAN), keys=keys, offset=found.offset, size=found.size, tar=path.stat().st_size)


def _known_scan(path: Path) -> Scan | None:
    """What :func:`write_scan` kept, if the tar still has the size that it had then."""
    kept = path.with_suffix(SCAN)
    if not kept.is_file():
        return None
    try:
        with np.load(kept) as arrays:
            if arrays["tar"] != path.stat().st_size:
                return None
            keys = arrays["keys"].tobytes().decode()
            return Scan(keys.split("\n") if keys else [], arrays["offset"], arrays["size"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ShardError(f"{kept} cannot be read ({error}); remove it, and the tar is scanned instead") from None


def scan(path: Path) -> Scan:
    """Where the parts of each sample of a tar lie; a key ends at the first dot of the file's name.

    Raises:
        ShardError: it is cut, broken or not a tar.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    samples.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(f"shard {path} is cut or not a tar: {error}") from None
    with path.open("rb") as stream:  # tarfile takes a broken header for the end of the file
        stream.seek(end)
        if stream.read(512) != bytes(512):
            raise ShardError(f"shard {path} is cut or broken at byte {end}; write it again")
    names = (SUFFIXES, ("txt",), ("json",))
    places = [
        [next((parts[s] for s in suffixes if s in parts), (0, -1)) for suffixes in names] for parts in samples.values()
    ]
    found = np.array(places, dtype=np.int64).reshape(-1, len(names), 2)
    return Scan(list(samples), found[..., 0], found[..., 1])
