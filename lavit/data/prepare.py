"""From sources to shards: read, cap, open, drop duplicates, split by concept, write."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavit.config import OneOf, changed_keys
from lavit.data.assets import AssetUnavailable
from lavit.data.disk import require_space
from lavit.data.emoji import EmojiSource, read_emoji
from lavit.data.examples import Example, Reading, Skip, SourceError
from lavit.data.folders import (
    CocoCaptionsSource,
    FolderSource,
    Img2datasetSource,
    read_coco_captions,
    read_folder,
    read_img2dataset,
)
from lavit.data.images import ImageError, open_image, shrink, to_webp
from lavit.data.shards import INDEX, ShardError, Shards, read_index
from lavit.data.split import SPLITS, SplitConfig, assign_split, unit_hash
from lavit.data.stamps import StampSource, read_stamps
from lavit.data.vqa import EasyVqaSource, VqaV2Source, read_easy_vqa, read_vqav2
from lavit.data.writing import SplitWriter

log = logging.getLogger(__name__)


@dataclass
class Source(OneOf):
    """Where examples come from: captioned pictures (the first five) or pictures with questions (the last two)."""

    emoji: EmojiSource | None = None
    stamps: StampSource | None = None
    folder: FolderSource | None = None
    coco_captions: CocoCaptionsSource | None = None
    img2dataset: Img2datasetSource | None = None
    easy_vqa: EasyVqaSource | None = None
    vqav2: VqaV2Source | None = None


_READERS = {
    "emoji": read_emoji,
    "stamps": read_stamps,
    "folder": read_folder,
    "coco_captions": read_coco_captions,
    "img2dataset": read_img2dataset,
    "easy_vqa": read_easy_vqa,
    "vqav2": read_vqav2,
}


@dataclass
class DataConfig:
    """What is trained and evaluated on.

    Args:
        sources: captioned pictures.
        vqa: pictures with questions, if questions are to be answered.
        split: shares of concepts kept for validation and test; a source's official split wins over them.
        image_size: pixels of a stored picture's longer side at most; smaller pictures stay as they are.
        quality: WebP quality of stored pictures; 100 is lossless.
        samples_per_shard: the most samples in one tar.
        max_images: the most pictures of each source, chosen to hold as many concepts as possible.
        cache: where fetched assets are kept; see :func:`lavit.data.assets.cache_folder`.
    """

    sources: list[Source] = field(default_factory=list)
    vqa: Source | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    image_size: int = 128
    quality: int = 100
    samples_per_shard: int = 1000
    max_images: int | None = None
    cache: str | None = None


def prepare(config: DataConfig, folder: str | Path) -> dict[str, Any]:
    """Write ``folder/captions`` and, if the config has questions, ``folder/vqa``; what is done already is kept.

    Returns:
        The indices by name, see :func:`lavit.data.shards.read_index`.

    Raises:
        ValueError: (or a subclass that says so) a source that gives nothing, an asset that cannot be fetched, too
            little disk, or a folder made from another config.
    """
    _check(config)
    parts = {"captions": config.sources, "vqa": [config.vqa] if config.vqa else []}
    return {
        name: _prepare_part(name, sources, config, Path(folder) / name) for name, sources in parts.items() if sources
    }


def _check(config: DataConfig) -> None:
    for key, least in (("image_size", 8), ("samples_per_shard", 1), ("max_images", 1)):
        value = getattr(config, key)
        if value is not None and value < least:
            raise ValueError(f"data.{key} is {value}; it must be at least {least}")
    if not 1 <= config.quality <= 100:
        raise ValueError(f"data.quality is {config.quality}; it must be from 1 to 100 (100 is lossless)")
    if not config.sources and config.vqa is None:
        raise ValueError("data.sources is empty; name at least one source, such as {emoji: {style: google}}")
    assign_split("", 0, config.split.validation, config.split.test)


def _prepare_part(name: str, sources: list[Source], config: DataConfig, folder: Path) -> dict[str, Any]:
    recipe = _recipe(sources, config)
    if folder.exists():
        return _finished(folder, recipe)
    readings = [_read(source, config) for source in sources]
    _check_kind(name, sources, readings)
    count = sum(len(reading.examples) for reading in readings)
    require_space(folder, count * (3 * config.image_size**2 + 4096), f"{name} shards of {count} pictures")
    skips = [skip for reading in readings for skip in reading.skips]
    licences = {key: value for reading in readings for key, value in reading.licences.items()}
    tally = _Tally()
    with SplitWriter(folder, config.samples_per_shard) as writer, tqdm(total=count, desc=name, unit="image") as bar:
        for source, reading in zip(sources, readings, strict=True):
            left_out = _write(reading.examples, config, writer, tally, bar)
            if reading.examples and len(left_out) == len(reading.examples):
                raise SourceError(
                    f"source '{source.chosen()[0]}': all {len(left_out)} pictures were skipped; the first: "
                    f"{left_out[0].name}: {left_out[0].reason}"
                )
            skips += left_out
        if not tally.counts["train"]:
            raise SourceError(f"{name}: none of the {sum(tally.counts.values())} pictures is in the train split")
        index = writer.finish({"config": recipe, **tally.summary(), "skipped": skips, "licences": licences})
    if skips:
        log.info("%s: %d left out, named in %s", name, len(skips), folder / INDEX)
    return index


def _recipe(sources: list[Source], config: DataConfig) -> dict[str, Any]:
    """What decides a folder's content; neither the cache's place nor the other folder's sources do."""
    chosen = [source.chosen() for source in sources]
    plain = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("sources", "vqa", "cache")}
    return {**plain, "sources": {str(i): {name: dataclasses.asdict(value)} for i, (name, value) in enumerate(chosen)}}


def _finished(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    index = read_index(folder)
    changed = changed_keys(index["config"], recipe)
    if changed:
        raise ShardError(
            f"{folder} was made from another config (changed: {', '.join(changed)}); remove it or choose another run folder"
        )
    Shards(folder)  # a cut shard is found here, not in the middle of training
    return index


def _read(source: Source, config: DataConfig) -> Reading:
    name, chosen = source.chosen()
    try:
        reading = _READERS[name](chosen, config.cache)
    except AssetUnavailable as error:
        if not getattr(chosen, "optional", False):
            raise
        log.warning("going on without the optional source '%s': %s", name, error)
        return Reading([], [Skip(f"source {name}", str(error))], {})
    if not reading.examples:
        raise SourceError(f"source '{name}' gives no examples; {len(reading.skips)} were left out")
    return reading._replace(examples=_cap(reading.examples, config.max_images, config.split.seed))


def _cap(examples: list[Example], most: int | None, seed: int) -> list[Example]:
    """At most ``most`` examples: one of each concept first, concepts in an order that only the seed decides."""
    if most is None or len(examples) <= most:
        return examples
    seen: Counter[str] = Counter()
    ranked = []
    for place, example in enumerate(examples):
        concept = example.meta["concept"]
        ranked.append((seen[concept], unit_hash(f"cap {seed}\0{concept}"), place))
        seen[concept] += 1
    return [examples[place] for _, _, place in sorted(sorted(ranked)[:most], key=lambda rank: rank[2])]


def _check_kind(name: str, sources: list[Source], readings: list[Reading]) -> None:
    for source, reading in zip(sources, readings, strict=True):
        if any(("questions" in example.meta) != (name == "vqa") for example in reading.examples):
            place, other = ("vqa", "sources") if name == "vqa" else ("sources", "vqa")
            raise SourceError(f"source '{source.chosen()[0]}' does not belong into data.{place}; put it into data.{other}")


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SPLITS, 0)))
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    concepts: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})
    pictures: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        concepts = {split: len(names) for split, names in self.concepts.items()}
        return {"counts": dict(self.counts), "concepts": concepts, "sources": {k: dict(v) for k, v in self.sources.items()}}


def _write(
    examples: list[Example], config: DataConfig, writer: SplitWriter, tally: _Tally, bar: tqdm
) -> list[Skip]:
    """Write one source's examples; returns those that could not be read and second copies of one picture."""
    skips: list[Skip] = []
    for example in examples:
        bar.update()
        try:
            image = shrink(open_image(_bytes(example), example.key), config.image_size)
        except ImageError as error:
            skips.append(Skip(example.key, str(error)))
            continue
        style = example.meta["style"]
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        first = tally.pictures.setdefault((style, digest), example.key)
        if first != example.key and "questions" not in example.meta:
            skips.append(Skip(example.key, f"the same picture as {first}"))
            continue
        split = _split_of(example, config.split)
        writer.write(split, example.key, to_webp(image, config.quality), example.caption, {**example.meta, "split": split})
        tally.counts[split] += 1
        tally.sources[example.meta["source"]][split] += 1
        tally.concepts[split].add(example.meta["concept"])
    return skips


def _bytes(example: Example) -> bytes:
    try:
        return example.read()
    except OSError as error:
        raise ImageError(f"image '{example.key}' cannot be read: {error.strerror or error}") from None


def _split_of(example: Example, split: SplitConfig) -> str:
    """By concept, unless the source has an official split; an official train split gives part for validation."""
    official = example.meta.get("official_split")
    if official is None:
        return assign_split(example.meta["concept"], split.seed, split.validation, split.test)
    if official == "train":
        return assign_split(example.meta["concept"], split.seed, split.validation, 0.0)
    return official
