"""Plain text for the language model: documents of text files, split once, then read by number from disk."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lavit.data.assets import fetch
from lavit.data.examples import SourceError
from lavit.data.split import SPLITS, SplitConfig, assign_split
from lavit.runs import read_json, write_json

log = logging.getLogger(__name__)
SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


@dataclass
class TextConfig:
    """Files, or folders that are searched for them, of text documents: ``.txt`` holds one, ``.jsonl`` one a line.

    The line is a JSON object with a string ``text``. Both may be compressed (``.gz``). ``assets`` are packages of text,
    from :data:`lavit.data.assets.ASSETS`.
    """

    paths: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)


def write_texts(config: TextConfig, split: SplitConfig, folder: Path) -> dict[str, int]:
    """Write the documents of every split below ``folder``, whole or not at all; what is there is kept.

    Returns:
        Documents by split.

    Raises:
        SourceError: a path that is not there or holds no text, a broken file, or a folder of other paths.
    """
    if folder.is_dir():
        about = read_json(folder / "about.json")
        if about["config"] != asdict(config):
            raise SourceError(f"{folder} was made from another data.text; remove it or choose another run folder")
        return about["counts"]
    draft = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    ends: dict[str, list[int]] = {name: [0] for name in SPLITS}
    files = {name: (draft / f"{name}.txt").open("wb") for name in SPLITS}
    for name, text in documents(config):
        place = assign_split(name, split.seed, split.validation, split.test)
        ends[place].append(ends[place][-1] + files[place].write(text.encode()))
    for place, file in files.items():
        file.close()
        np.save(draft / f"{place}.npy", np.array(ends[place], dtype=np.int64))
    counts = {place: len(found) - 1 for place, found in ends.items()}
    if not all(counts.values()):
        raise SourceError(f"data.text has {counts} documents; each split needs some: add files, or raise data.split")
    write_json(draft / "about.json", {"config": asdict(config), "counts": counts})
    os.replace(draft, folder)
    return counts


def documents(config: TextConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of every document that is not empty.

    Raises:
        SourceError: see :func:`write_texts`.
    """
    for place in [*map(Path, config.paths), *map(fetch, config.assets)]:
        if not place.exists():
            raise SourceError(f"data.text: {place} does not exist")
        found = [place] if place.is_file() else sorted(place.rglob("*"))
        files = [path for path in found if path.name.endswith(SUFFIXES)]
        if not files:
            raise SourceError(f"data.text: {place} holds no text ({', '.join(SUFFIXES)})")
        others = [path.name for path in found if path.is_file() and not path.name.endswith(SUFFIXES)]
        if others:
            log.warning("data.text: %d other files in %s are left out, such as %s", len(others), place, others[0])
        for path in files:
            yield from _read(path)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            if path.name.removesuffix(".gz").endswith(".txt"):
                yield from [(path.name, text)] if (text := file.read().strip()) else []
                return
            for number, line in enumerate(file, 1):
                text = json.loads(line)["text"].strip() if line.strip() else ""
                text.encode()  # a lone surrogate has no bytes
                if text:
                    yield f"{path.name}:{number}", text
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        where = f"{path}, line {number}" if number else str(path)
        raise SourceError(f"data.text: {where} cannot be read ({error}); mend it or leave it out") from None


class TextSet:
    """The documents of a split, by number."""

    def __init__(self, folder: Path, split: str):
        if not folder.is_dir():
            raise SourceError(f"no texts in {folder}; prepare the data first (make prepare)")
        try:
            self._ends = np.load(folder / f"{split}.npy", mmap_mode="r")
            self._bytes = np.memmap(folder / f"{split}.txt", np.uint8, "r")
        except (OSError, ValueError) as error:
            raise SourceError(f"{folder} cannot be read ({error}); remove it and prepare the data again") from None
        if self._ends[-1] != len(self._bytes):
            raise SourceError(f"{folder / split}.txt is cut; remove {folder} and prepare the data again")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def text(self, number: int) -> str:
        start, end = map(int, self._ends[number : number + 2])
        return self._bytes[start:end].tobytes().decode()
