"""From sources to shards: read, cap, open, drop duplicates, split by concept, write."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from lavit.config import changed_keys
from lavit.data.audio import AudioError, as_audio, to_flac
from lavit.data.examples import Example, Reading, Skip, SourceError
from lavit.data.images import ImageError, moved, open_image, shrink, to_webp
from lavit.data.shards import INDEX, ShardError, Shards, read_index
from lavit.data.sources import Source, read_source
from lavit.data.split import SPLITS, SplitConfig, assign_split, unit_hash
from lavit.data.texts import TextConfig
from lavit.data.writing import SplitWriter
from lavit.runs import require_free, usable_cores

log = logging.getLogger(__name__)
AHEAD = 4  # pictures a core that are opened before they are written


@dataclass
class DataConfig:
    """What is trained and evaluated on.

    Args:
        sources: captioned pictures.
        vqa: pictures with questions, if questions are to be answered.
        speech: sounds with what is said in them.
        text: documents without pictures, which keep a language model's language.
        split: shares of concepts kept for validation and test; a source's official split wins over them.
        copies: of each captioned training picture, turned, moved and scaled a little, beside it: small sets are
            memorised less.
        image_size: pixels of a stored picture's longer side at most; smaller pictures stay as they are.
        quality: WebP quality of stored pictures; 100 is lossless.
        samples_per_shard: the most samples in one tar.
        max_images: the most pictures of each source, chosen to hold as many concepts as possible.
    """

    sources: list[Source] = field(default_factory=list)
    vqa: Source | None = None
    speech: Source | None = None
    text: TextConfig | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    copies: int = 0
    image_size: int = 128
    quality: int = 100
    samples_per_shard: int = 1000
    max_images: int | None = None


def prepare(
    config: DataConfig, folder: str | Path, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Write ``folder/captions`` and, if the config has them, ``folder/vqa`` and ``folder/speech``.

    What is done already is kept.

    Args:
        config: the sources and how to store them.
        folder: where the shards go; created.
        progress: called with (done, in all, ``captions``, ``vqa`` or ``speech``).

    Returns:
        The indices by name, see :func:`lavit.data.shards.read_index`.

    Raises:
        ValueError: (or a subclass that says so) a source that gives nothing, an asset that cannot be fetched, too
            little disk, or a folder made from another config.
    """
    _check(config)
    parts = {"captions": config.sources}
    parts |= {name: [source] if (source := getattr(config, name)) else [] for name in ("vqa", "speech")}
    progress = progress or (lambda done, total, part: None)
    known: dict[str, _Seen] = {}
    indices = {}
    for name, sources in parts.items():
        if sources:
            indices[name] = _prepare_part(name, sources, config, Path(folder) / name, known, progress)
    return indices


def _check(config: DataConfig) -> None:
    for key, least in (("image_size", 8), ("samples_per_shard", 1), ("max_images", 1), ("copies", 0)):
        value = getattr(config, key)
        if value is not None and value < least:
            raise ValueError(f"data.{key} is {value}; it must be at least {least}")
    if not 1 <= config.quality <= 100:
        raise ValueError(f"data.quality is {config.quality}; it must be from 1 to 100 (100 is lossless)")
    if not config.sources and config.vqa is None:
        raise ValueError("data.sources is empty; name at least one source, such as {emoji: {style: google}}")
    assign_split("", 0, config.split.validation, config.split.test)


def _prepare_part(
    name: str,
    sources: list[Source],
    config: DataConfig,
    folder: Path,
    known: dict[str, _Seen],
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Write one part unless it is there; ``known`` has the pictures of the parts before it and gets this one's."""
    _check_kind(name, sources)
    recipe = _recipe(name, sources, config)
    if folder.exists():
        return _finished(folder, recipe, known)
    most = None if name == "speech" else config.max_images
    readings = [read_source(source, most, config.split.seed) for source in sources]
    count = sum(len(reading.examples) for reading in readings)
    require_free(folder, count * (1 + config.copies) * (3 * config.image_size**2 + 4096))
    skips = [skip for reading in readings for skip in reading.skips]
    tally = _Tally(known)
    licences = {key: value for reading in readings for key, value in reading.licences.items()}
    with (
        SplitWriter(folder, config.samples_per_shard) as writer,
        tqdm(total=count, desc=name, disable=None) as bar,
    ):
        for source, reading in zip(sources, readings, strict=True):
            left_out = []
            for example, opened in _opened(reading.examples, config, name == "speech"):
                left_out += _write(example, opened, config, writer, tally)
                bar.update()
                progress(tally.seen, count, name)
            _check_some(source, reading, left_out)
            skips += left_out
        if not tally.counts["train"]:
            raise SourceError(f"{name}: none of the {count} examples is in the train split; lower the other shares")
        index = writer.finish({"config": recipe, **tally.summary(), "skipped": skips, "licences": licences})
    if skips:
        log.info("%s", left_out_words({name: index}, folder.parent))
    return index


def left_out_words(indices: dict[str, dict[str, Any]], folder: Path) -> str:
    """What to tell the user of pictures that were left out, empty if there are none."""
    counts = {name: len(index["skipped"]) for name, index in indices.items() if index["skipped"]}
    return "; ".join(f"{count} left out, named in {folder / name / INDEX}" for name, count in counts.items())


def _recipe(name: str, sources: list[Source], config: DataConfig) -> dict[str, Any]:
    """What decides a folder's content; the other folder's sources do not."""
    other = ["sources", "vqa", "speech", "text"] + (["copies"] if name != "captions" or not config.copies else [])
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in other}
    chosen = [source.chosen() for source in sources]
    return {**settings, "sources": {str(i): {name: dataclasses.asdict(c)} for i, (name, c) in enumerate(chosen)}}


def _finished(folder: Path, recipe: dict[str, Any], known: dict[str, _Seen]) -> dict[str, Any]:
    index = read_index(folder)
    changed = changed_keys(index["config"], recipe)
    if changed:
        raise ShardError(
            f"{folder} was made from another config (changed: {', '.join(changed)}); remove it or choose another "
            "run folder"
        )
    shards = Shards(folder)  # a cut shard is found here, not in the middle of training
    for number, key in enumerate(shards.keys):
        meta = shards.describe(number)[1]
        known.setdefault(meta["pixels"], _Seen(key, meta["split"], set())).styles.add(meta["style"])
    return index


def _check_kind(name: str, sources: list[Source]) -> None:
    key = "sources" if name == "captions" else name
    has = {"sources": "captions", "vqa": "questions", "speech": "speech"}
    for source in sources:
        if source.kind != key:
            raise SourceError(
                f"data.{key}: source '{source.chosen()[0]}' has {has[source.kind]}; it belongs in data.{source.kind}"
            )


def _check_some(source: Source, reading: Reading, left_out: list[Skip]) -> None:
    if left_out and len(left_out) == len(reading.examples):
        raise SourceError(
            f"source '{source.chosen()[0]}': all {len(left_out)} examples were left out; the first: "
            f"{left_out[0].name}: {left_out[0].reason}"
        )


@dataclass
class _Seen:
    """A picture that was written before: the first sample of it, its split, and in which styles it came."""

    key: str
    split: str
    styles: set[str]


@dataclass
class _Tally:
    """What was written so far; ``pictures`` by a hash of their pixels."""

    pictures: dict[str, _Seen]
    seen: int = 0
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SPLITS, 0)))
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    concepts: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})

    def summary(self) -> dict[str, Any]:
        return {
            "counts": dict(self.counts),
            "concepts": {split: len(names) for split, names in self.concepts.items()},
            "sources": {name: dict(counts) for name, counts in self.sources.items()},
        }


class _Opened(NamedTuple):
    """A picture or a sound as it is stored, a hash of what it holds, and the copies to be stored beside it."""

    pixels: str
    file: bytes
    copies: list[bytes]
    suffix: str = "webp"


def _opened(examples: list[Example], config: DataConfig, heard: bool) -> Iterator[tuple[Example, _Opened | Skip]]:
    """Every example in its order with its file, or why that cannot be read; each core opens one at a time."""
    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool:  # Pillow's work is done outside of Python's lock
        waiting: deque[tuple[Example, Future]] = deque()
        for example in examples:
            waiting.append((example, pool.submit(_open_sound if heard else _open, example, config)))
            if len(waiting) > AHEAD * cores:
                first, opened = waiting.popleft()
                yield first, opened.result()
        for first, opened in waiting:
            yield first, opened.result()


def _name(example: Example) -> str:
    return example.meta.get("file", example.key)


def _open(example: Example, config: DataConfig) -> _Opened | Skip:
    name = _name(example)
    try:
        image = shrink(open_image(example.read(), name), config.image_size)
    except ImageError as error:
        return Skip(name, str(error))
    except OSError as error:
        return Skip(name, f"image '{name}' cannot be read: {error.strerror or error}")
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    varied = "questions" not in example.meta and _split_of(example, config.split) == "train"
    copies = [_copy(image, f"{example.key} {number}") for number in range(config.copies if varied else 0)]
    return _Opened(pixels, to_webp(image, config.quality), [to_webp(copy, config.quality) for copy in copies])


def _open_sound(example: Example, config: DataConfig) -> _Opened | Skip:
    name = _name(example)
    try:
        samples = as_audio(example.read(), name)
    except (AudioError, OSError) as error:
        return Skip(name, str(error))
    digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
    return _Opened(digest, to_flac(samples.clamp(-1, 1)), [], "flac")


def _copy(image: Image.Image, name: str) -> Image.Image:
    return moved(image, tuple(unit_hash(f"{what}\0{name}") for what in ("angle", "size", "right", "down")))


def _write(
    example: Example, opened: _Opened | Skip, config: DataConfig, writer: SplitWriter, tally: _Tally
) -> list[Skip]:
    """Write one example, or say why not: it cannot be read, or its picture was there before.

    A picture may come again in another style (two sets of emoji share some), and with questions, but not in another
    split than its caption's.
    """
    tally.seen += 1
    name = _name(example)
    if isinstance(opened, Skip):
        return [opened]
    pixels, file, copies, suffix = opened
    split, style = _split_of(example, config.split), example.meta["style"]
    first = tally.pictures.get(pixels)
    if first and first.split != split:
        return [Skip(name, f"the same picture as {first.key}, which is in the {first.split} split")]
    if "questions" not in example.meta:  # official sets of questions stay as they are otherwise
        if first and style in first.styles:
            return [Skip(name, f"the same {'sound' if suffix == 'flac' else 'picture'} as {first.key}")]
        tally.pictures.setdefault(pixels, _Seen(example.key, split, set())).styles.add(style)
    meta = {**example.meta, "split": split, "pixels": pixels}
    writer.write(split, example.key, file, example.caption, meta, suffix)
    for number, copy in enumerate(copies, 1):
        writer.write(split, f"{example.key}-copy{number}", copy, example.caption, {**meta, "copy": number})
    tally.counts[split] += 1 + len(copies)
    tally.sources[meta["source"]][split] += 1 + len(copies)
    tally.concepts[split].add(meta["concept"])
    return []


def _split_of(example: Example, split: SplitConfig) -> str:
    """By concept, unless the source has an official split; an official train split gives part for validation."""
    official = example.meta.get("official_split")
    if official is None:
        return assign_split(example.meta["concept"], split.seed, split.validation, split.test)
    if official == "train":
        return assign_split(example.meta["concept"], split.seed, split.validation, 0.0)
    return official
