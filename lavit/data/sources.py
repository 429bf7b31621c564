"""The choice of sources in a config, and the one place that reads any of them."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from lavit.config import OneOf
from lavit.data.assets import AssetUnavailable, fetch
from lavit.data.audio import SUFFIXES as SOUNDS
from lavit.data.clipart import ClipartSource, read_clipart
from lavit.data.emoji import EmojiSource, emoji_assets, read_emoji
from lavit.data.examples import Example, Reading, Skip, SourceError
from lavit.data.folders import (
    CocoCaptionsSource,
    FolderSource,
    Img2datasetSource,
    read_coco_captions,
    read_folder,
    read_img2dataset,
)
from lavit.data.speech import SpeechSource, read_speech
from lavit.data.split import unit_hash
from lavit.data.stamps import StampSource, read_stamps
from lavit.data.vqa import EasyVqaSource, VqaV2Source, read_easy_vqa, read_vqav2

log = logging.getLogger(__name__)


@dataclass
class Source(OneOf):
    """Where examples come from: captioned pictures (the first six), pictures with questions (two), or speech (two)."""

    emoji: EmojiSource | None = None
    stamps: StampSource | None = None
    clipart: ClipartSource | None = None
    folder: FolderSource | None = None
    coco_captions: CocoCaptionsSource | None = None
    img2dataset: Img2datasetSource | None = None
    easy_vqa: EasyVqaSource | None = None
    vqav2: VqaV2Source | None = None
    spoken_stamps: SpeechSource | None = None
    spoken_folder: FolderSource | None = None

    @property
    def kind(self) -> str:
        """The key of ``data`` that a source of this kind belongs to: "sources", "vqa" or "speech"."""
        name, _ = self.chosen()
        return "speech" if name.startswith("spoken_") else "vqa" if name in ("easy_vqa", "vqav2") else "sources"


_READERS = {
    "emoji": read_emoji,
    "stamps": read_stamps,
    "clipart": read_clipart,
    "folder": read_folder,
    "coco_captions": read_coco_captions,
    "img2dataset": read_img2dataset,
    "easy_vqa": read_easy_vqa,
    "vqav2": read_vqav2,
    "spoken_stamps": read_speech,
    "spoken_folder": partial(read_folder, what="sounds", suffixes=SOUNDS),
}


def source_assets(source: Source) -> list[str]:
    """Names of the assets that a source is made of; none for the user's own files."""
    name, chosen = source.chosen()
    packaged = {"stamps": ["stamps"], "clipart": ["clipart"], "easy_vqa": ["easy-vqa"], "spoken_stamps": ["stamps"]}
    return emoji_assets(chosen) if name == "emoji" else packaged.get(name, [])


def fetch_source(source: Source) -> None:
    """Fetch a source's assets ahead of reading it.

    Raises:
        AssetError: an asset cannot be fetched; an optional source that this machine cannot have passes.
    """
    for asset in source_assets(source):
        try:
            fetch(asset)
        except AssetUnavailable:
            if not _is_optional(source):
                raise


def read_source(source: Source, most: int | None = None, seed: int = 0) -> Reading:
    """The examples of a source, at most ``most`` of them.

    An optional source whose asset this machine cannot have gives no examples and one skip.

    Raises:
        AssetError: an asset cannot be fetched.
        SourceError: the source gives no examples.
    """
    name, chosen = source.chosen()
    try:
        reading = _READERS[name](chosen)
    except AssetUnavailable as error:
        if not _is_optional(source):
            raise
        log.warning("going on without the optional source '%s': %s", name, error)
        return Reading([], [Skip(f"source {name}", str(error))], {})
    if not reading.examples:
        first = f"; the first: {reading.skips[0].name}: {reading.skips[0].reason}" if reading.skips else ""
        raise SourceError(f"source '{name}' gives no examples, {len(reading.skips)} were left out{first}")
    return reading._replace(examples=cap(reading.examples, most, seed))


def cap(examples: list[Example], most: int | None, seed: int) -> list[Example]:
    """At most ``most`` examples in their order: one of each concept first, concepts in an order of the seed's."""
    if most is None or len(examples) <= most:
        return examples
    seen: Counter[str] = Counter()
    ranked = []
    for place, example in enumerate(examples):
        concept = example.meta["concept"]
        ranked.append((seen[concept], unit_hash(f"cap {seed}\0{concept}"), place))
        seen[concept] += 1
    return [examples[place] for place in sorted(rank[2] for rank in sorted(ranked)[:most])]


def _is_optional(source: Source) -> bool:
    chosen: Any = source.chosen()[1]
    return getattr(chosen, "optional", False)
