"""The official files of a set in one folder: found where their archives unpack them, and checked as they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
SHOWN = 3  # ids that an error names


class OfficialFile:
    """The content of one JSON file, and errors that name it.

    Attributes:
        path: where it was found.
        content: what it holds.
    """

    def __init__(self, path: Path, content: Any, where: str) -> None:
        self.path, self.content, self._where = path, content, where

    def altered(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}, unlike the official file; get it anew from {self._where}")

    def take(self, entry: Any, key: str, kind: type, *place: str | int) -> Any:
        """``entry[key]``.

        Args:
            kind: what it must be: str, int, list or dict; True is no whole number.
            place: where the entry stands in the file, for the error.

        Raises:
            ValueError: it is missing or of another kind.
        """
        value = entry.get(key) if type(entry) is dict else None
        if type(value) is not kind:
            if type(entry) is not dict:
                raise self.altered(f"{_path(place)} is {_short(entry)} and no object")
            found = f"is {_short(value)} and not {KINDS[kind]}" if key in entry else "is missing"
            raise self.altered(f"{_path((*place, key))} {found}")
        return value

    def texts(self, values: Iterable[Any], *place: str | int) -> tuple[str, ...]:
        """All of some values, which must be texts.

        Raises:
            ValueError: one of them is not.
        """
        found = tuple(values)
        for value in found:
            if type(value) is not str:
                raise self.altered(f"{_path(place)} holds {_short(value)} and not text alone")
        return found


class SetFolder:
    """A set's folder: official files by their role, and pictures by name.

    Args:
        folder: where the archives were unpacked.
        title: the set's, for errors.
        where: the address that its files come from, for errors.
        files: for each role the relative paths that are looked for, the first that exists counts. The role ``images``
            has folders; the one with the most of the pictures counts.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, folder: str | Path, title: str, where: str, files: Mapping[str, Sequence[str]]) -> None:
        self.root, self.title, self.where, self.files = Path(folder), title, where, files
        self._digest = hashlib.sha256()
        if not self.root.is_dir():
            raise ValueError(f"{title}: there is no folder {folder}; unpack the files from {where} into one")

    @property
    def digest(self) -> str:
        """sha256 of all files that were read, one after another."""
        return self._digest.hexdigest()

    def read(self, role: str, ids_as_keys: bool = False) -> OfficialFile:
        """Read the file of a role.

        Args:
            ids_as_keys: whether objects have ids as keys, so that a key that stands twice is an error.

        Raises:
            ValueError: it is missing or is no JSON.
        """
        names = self.files[role]
        path = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if path is None:
            others = f" (or {', '.join(names[1:])} in it)" if len(names) > 1 else ""
            raise ValueError(f"{self.title}: no file {self.root / names[0]}{others}; get it from {self.where}")
        data = path.read_bytes()
        self._digest.update(data)
        try:
            content = json.loads(data, object_pairs_hook=without_doubles if ids_as_keys else None)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); get it anew from {self.where}") from None
        return OfficialFile(path, content, self.where)

    def images(self, names: Iterable[str]) -> dict[str, Path]:
        """The pictures' files by name, a path below the folder of pictures. Every folder is listed once.

        Raises:
            ValueError: some are missing: how many, and the first.
        """
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return {}
        by_folder: dict[str, set[str]] = defaultdict(set)
        for name in wanted:
            parent, _, last = name.rpartition("/")
            if not last or name.startswith("/") or ".." in (last, *parent.split("/")):
                raise ValueError(f"{self.title}: {name!r} is no picture's name; get the files anew from {self.where}")
            by_folder[parent].add(last)
        best, missing = None, set(wanted)
        for place in self.files["images"]:
            absent = _absent(self.root / place, by_folder)
            if best is None or len(absent) < len(missing):
                best, missing = self.root / place, absent
        if missing:
            first = next(name for name in wanted if name in missing)
            raise ValueError(
                f"{self.title}: {len(missing)} of {len(wanted)} images are missing, the first is {best / first}; "
                f"get them from {self.where}"
            )
        return {name: best / name for name in wanted}


def named(ids: Iterable[Any]) -> str:
    """A few of some ids, and how many there are."""
    some = list(ids)
    return ", ".join(map(repr, some[:SHOWN])) + (f" and {len(some) - SHOWN} more" if len(some) > SHOWN else "")


def _absent(base: Path, by_folder: Mapping[str, set[str]]) -> set[str]:
    absent: set[str] = set()
    for folder, names in by_folder.items():
        place = base / folder
        gone = names.difference(os.listdir(place) if place.is_dir() else ())
        absent |= {f"{folder}/{name}" if folder else name for name in gone}
    return absent


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _path(place: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the file"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
