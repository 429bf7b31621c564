"""Emoji pictures joined by code point to their English labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavit.data.assets import fetch, licence_of
from lavit.data.concepts import concept_of, plain
from lavit.data.examples import Example, Reading, Skip, SourceError

STYLES = ("google", "twitter")
_CATEGORY = {  # emojibase's groups; "component" (skin tones, hair) is no thing of its own
    "smileys-emotion": "smileys", "people-body": "people", "animals-nature": "animals", "food-drink": "food",
    "travel-places": "travel", "activities": "activities", "objects": "objects", "symbols": "symbols", "flags": "flags",
}  # fmt: skip


@dataclass
class EmojiSource:
    """One style's emoji.

    Args:
        style: ``google`` (Noto) or ``twitter`` (Twemoji).
        skin_tones: whether the five skin tones of a person or hand are pictures of their own.
    """

    style: str = "google"
    skin_tones: bool = False


def emoji_assets(source: EmojiSource) -> list[str]:
    """Names of the assets with the pictures and with the labels.

    Raises:
        SourceError: an unknown style.
    """
    if source.style not in STYLES:
        raise SourceError(f"no emoji style is called '{source.style}'; there are {', '.join(STYLES)}")
    return [f"emoji-{source.style}", "emojibase"]


def read_emoji(source: EmojiSource) -> Reading:
    """The emoji of one style, captioned ``category: label``.

    Raises:
        AssetError: the pictures or the labels cannot be fetched.
        SourceError: an unknown style.
    """
    pictures, labels = emoji_assets(source)
    folder = fetch(pictures) / "package" / "img" / source.style / "64"
    english = fetch(labels) / "package" / "en"
    licences = {name: licence_of(name) for name in (pictures, labels)}
    examples, skips = join_emoji(folder, english, source)
    return Reading(examples, skips, licences)


def join_emoji(folder: Path, english: Path, source: EmojiSource) -> tuple[list[Example], list[Skip]]:
    """Join PNGs named by code point in ``folder`` with emojibase's ``data.json`` and ``messages.json``."""
    messages = json.loads((english / "messages.json").read_text())
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    subgroups = {group["order"]: group["key"] for group in messages["subgroups"]}
    files = {_bare(path.stem): path for path in sorted(folder.glob("*.png"))}
    examples: list[Example] = []
    skips: list[Skip] = []
    for emoji in sorted(json.loads((english / "data.json").read_text()), key=_age_and_length):
        group = groups.get(emoji.get("group"), "component")
        if group not in _CATEGORY:
            continue
        meta = {
            "source": f"emoji-{source.style}",
            "licence": licence_of(f"emoji-{source.style}")["licence"],
            "language": "en",
            "group": group,
            "subgroup": subgroups[emoji["subgroup"]],
            "category": _CATEGORY[group],
            "concept": concept_of(_label(emoji)),
            "style": source.style,
        }
        for variant in [emoji, *(emoji.get("skins", []) if source.skin_tones else [])]:
            file = files.get(_bare(variant["hexcode"]))
            if file is None:
                skips.append(Skip(f"{meta['source']} {variant['label']}", "this style has no picture of it"))
            else:
                examples.append(_example(file, variant, {**meta, "tags": emoji.get("tags", [])}))
    return examples, skips


def _age_and_length(emoji: dict[str, Any]) -> tuple[float, int, int]:
    """Where emoji share one picture the first one keeps it: Norway before Bouvet Island, family before its members."""
    return emoji.get("version", 0), len(emoji["label"]), emoji.get("order", 0)


def _example(file: Path, emoji: dict[str, Any], meta: dict[str, Any]) -> Example:
    return Example(f"{meta['source']}-{file.stem}", file.read_bytes, f"{meta['category']}: {_label(emoji)}", meta)


def _label(emoji: dict[str, Any]) -> str:
    return plain(emoji["label"]).removeprefix("flag: ")


def _bare(hexcode: str) -> str:
    """Code points without the variation selector, which the two packages use differently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")
