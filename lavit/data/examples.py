"""What every source of data gives: examples not yet opened, and what it left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from lavit.data.assets import licence_of
from lavit.data.concepts import concept_of

_LONGEST_KEY = 88  # bytes; a plain tar header holds 100, and the suffix and a number go behind the key


class SourceError(ValueError):
    """A source that cannot give a single example, or whose files do not fit together."""


class Example(NamedTuple):
    """One picture with its caption or its questions.

    Args:
        key: unique name within the source, fit for a tar member: letters, digits, ``-``, ``_``, ``/``.
        read: gives the picture file's bytes; called when the example is written.
        caption: English text, empty only when ``meta["questions"]`` is there.
        meta: source, licence, language, tags, group, concept, style; category where the caption is
            ``category: label``; file, the picture's name where the user gave it; official_split (train | validation |
            test) where the source has one; questions, a list of ``{"id", "question", "answers"}``, for visual
            question answering.
    """

    key: str
    read: Callable[[], bytes]
    caption: str
    meta: dict[str, Any]


class Skip(NamedTuple):
    """One thing left out, and why."""

    name: str
    reason: str


class Reading(NamedTuple):
    """What a source gave."""

    examples: list[Example]
    skips: list[Skip]
    licences: dict[str, dict[str, str]]


def named_drawing(
    source: str, path: str, category: str, label: str, read: Callable[[], bytes], **about: str
) -> Example:
    """A drawing of one thing in a packaged collection; ``path`` is its place there, ``about`` goes into its meta."""
    meta = {
        "source": source,
        "licence": licence_of(source)["licence"],
        "language": "en",
        "tags": path.split("/")[:-1],
        "group": path.rpartition("/")[0],
        "category": category,
        "concept": concept_of(label),
        "style": source,
        **about,
    }
    return Example(safe_key(f"{source}-{path.replace('/', '-')}"), read, f"{category}: {label}", meta)


def safe_key(text: str) -> str:
    """``text`` as an example key: a webdataset key ends at its first dot, holds no blanks and fits a tar header."""
    key = "".join(char if char.isalnum() or char in "-_/" else "_" for char in text).strip("/") or "_"
    if len(key.encode()) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{key.encode()[: _LONGEST_KEY - 13].decode(errors='ignore')}-{digest}"
