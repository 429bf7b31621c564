"""Sources that are the user's own files: a folder of images or sounds with texts, COCO captions, img2dataset tars."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavit.data.concepts import concept_of
from lavit.data.examples import Example, Reading, Skip, SourceError, safe_key
from lavit.data.images import SUFFIXES
from lavit.data.shards import Shards


@dataclass
class FolderSource:
    """A folder of images, or of sounds with what is said in them, searched with its subfolders.

    Args:
        path: the folder.
        captions: a ``.csv`` (columns ``file``, ``caption``) or ``.jsonl`` (``{"file", "caption"}`` a line), the files
            relative to the folder; without it each ``x.png`` has its caption in ``x.txt`` beside it. Pictures that
            belong together, in the order of their lines, have the same ``page`` there: interleaved documents are made
            of them, and they are in one split.
        name: recorded as the examples' source; also the beginning of their keys.
        licence: recorded with each example.
        language: of the captions.
        split: ``train``, ``validation`` or ``test`` for all of it; without it, by caption.
    """

    path: str
    captions: str | None = None
    name: str = "folder"
    licence: str = "unknown"
    language: str = "en"
    split: str | None = None


@dataclass
class CocoCaptionsSource:
    """COCO captions, or any set in their format.

    Args:
        images: folder of the pictures.
        captions: ``captions_train2017.json`` or the like. An image's first caption is its caption; all are in
            ``meta["captions"]``.
        split: as in :class:`FolderSource`; without it, by image.
        licence: recorded with each example.
    """

    images: str
    captions: str
    split: str | None = None
    licence: str = "CC-BY-4.0"


@dataclass
class Img2datasetSource:
    """The tars that img2dataset writes (``key.jpg|png|webp``, ``key.txt``, ``key.json``).

    Args:
        path: a tar, or a folder of them.
        name: as in :class:`FolderSource`.
        licence: recorded where an example's own json has no ``licence``.
        split: as in :class:`FolderSource`.
    """

    path: str
    name: str = "img2dataset"
    licence: str = "unknown"
    split: str | None = None


def read_folder(source: FolderSource, what: str = "images", suffixes: tuple[str, ...] = SUFFIXES) -> Reading:
    """The images (or ``what`` ends with one of the ``suffixes``) of a folder that have a caption.

    Raises:
        SourceError: no such folder, no images in it, captions for none of them, or a captions file that is not CSV or
            JSONL with ``file`` and ``caption``.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise SourceError(f"folder source: no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise SourceError(f"folder source: {folder} holds no {what} ({', '.join(suffixes)})")
    images = {path.relative_to(folder).as_posix(): path for path in paths}
    pages: dict[str, str] = {}
    if source.captions is None:
        captions, skips = _sidecars(folder, images)
    else:
        captions, skips, pages = _listed(Path(source.captions), images)
    meta = _meta(source.name, source.licence, source.language, source.split)
    examples = []
    for file, text in captions.items():
        about = {**meta, "concept": concept_of(text), "file": file}
        if file in pages:
            page = f"{source.name} {pages[file]}"
            about |= {"concept": f"page {page}", "page": page}
        if text:
            examples.append(Example(safe_key(f"{source.name}-{file}"), images[file].read_bytes, text, about))
    if not examples:
        where = source.captions or f"the .txt files beside the {what} of {folder}"
        raise SourceError(f"folder source: {where} has a caption for none of the {len(images)} {what} of {folder}")
    return Reading(examples, skips, {source.name: _licence(source.licence, f"{what} with captions")})


def _sidecars(folder: Path, images: dict[str, Path]) -> tuple[dict[str, str], list[Skip]]:
    stems = {path.with_suffix("") for path in images.values()}
    alone = sorted(path for path in folder.rglob("*.txt") if path.with_suffix("") not in stems)
    captions = {}
    skips = [Skip(path.relative_to(folder).as_posix(), "a caption without an image") for path in alone]
    for file, path in images.items():
        text = path.with_suffix(".txt")
        captions[file] = " ".join(text.read_text(encoding="utf-8", errors="replace").split()) if text.is_file() else ""
        if not captions[file]:
            skips.append(Skip(file, "empty caption" if text.is_file() else f"no caption file {text.name} beside it"))
    return captions, skips


def _listed(path: Path, images: dict[str, Path]) -> tuple[dict[str, str], list[Skip], dict[str, str]]:
    captions: dict[str, str] = {}
    pages: dict[str, str] = {}
    skips: list[Skip] = []
    for file, caption, page in _rows(path):
        text = " ".join(caption.split())
        if file not in images:
            skips.append(Skip(file, f"{path.name} has a caption for it but there is no such image"))
        elif not text:
            skips.append(Skip(file, "empty caption"))
        elif file in captions:
            skips.append(Skip(file, f"a further caption in {path.name}; the first one counts"))
        else:
            captions[file] = text
            if page:
                pages[file] = page
    named = captions.keys() | {skip.name for skip in skips}
    skips += [Skip(file, f"no caption in {path.name}") for file in images if file not in named]
    return captions, skips, pages


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """File, caption and page of every line."""
    if not path.is_file():
        raise SourceError(f"folder source: no captions file {path}")
    rows: Iterable[dict[str, Any]]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows = csv.DictReader(text.splitlines(keepends=True))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raise SourceError(f"folder source: captions {path} must be a .csv or a .jsonl file")
        return [(str(row["file"]).strip(), str(row["caption"] or ""), _page(row.get("page"))) for row in rows]
    except (KeyError, TypeError):
        raise SourceError(f"folder source: {path} must have 'file' and 'caption' in every row") from None
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"folder source: {path} cannot be read: {error}") from None


def _page(value: Any) -> str:
    return "" if value is None else str(value).strip()


def read_coco_captions(source: CocoCaptionsSource) -> Reading:
    """One example an image of a COCO captions file.

    Raises:
        SourceError: a missing folder or file, another format, or none of the images there.
    """
    folder, path = Path(source.images), Path(source.captions)
    if not folder.is_dir():
        raise SourceError(f"coco_captions.images: no folder {folder}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(" ".join(annotation["caption"].split()))
    except FileNotFoundError:
        raise SourceError(f"coco_captions.captions: no file {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"coco_captions: {path} is not a COCO captions file: {error!r}") from None
    meta = _meta("coco", source.licence, "en", source.split)
    examples: list[Example] = []
    skips: list[Skip] = []
    for image in sorted(files.keys() | captions.keys()):
        texts = [text for text in captions[image] if text]
        picture = folder / files.get(image, "")
        if not texts:
            skips.append(Skip(f"coco image {image}", "empty caption"))
        elif not picture.is_file():
            skips.append(Skip(f"coco image {image}", f"a caption but no image {picture}"))
        else:
            about = {**meta, "concept": f"coco {image}", "captions": texts}
            examples.append(Example(f"coco-{image:012d}", picture.read_bytes, texts[0], about))
    if not examples:
        raise SourceError(f"coco_captions: {path} has a caption for no image in {folder}")
    return Reading(examples, skips, {"coco": _licence(source.licence, "COCO captions format")})


def read_img2dataset(source: Img2datasetSource) -> Reading:
    """The examples of img2dataset's tars.

    Raises:
        ShardError: no tars there, or a broken one.
        SourceError: no example has a caption.
    """
    shards = Shards(source.path)
    examples: list[Example] = []
    skips: list[Skip] = []
    for index, key in enumerate(shards.keys):
        caption, about = shards.describe(index)
        text = " ".join(caption.split())
        if not text:
            skips.append(Skip(f"{source.name} {key}", "empty caption"))
            continue
        licence = str(about.get("licence") or about.get("license") or source.licence)
        meta = {**_meta(source.name, licence, "en", source.split), "concept": concept_of(text), "original": about}
        read = shards.reader(index)
        examples.append(Example(safe_key(f"{source.name}-{key}"), read, text, meta))
    if not examples:
        raise SourceError(f"img2dataset: none of the {len(shards)} examples in {source.path} has a caption")
    return Reading(examples, skips, {source.name: _licence(source.licence, "img2dataset tars")})


def _meta(name: str, licence: str, language: str, split: str | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"source": name, "licence": licence, "language": language}
    meta |= {"tags": [], "group": name, "style": name}
    return meta | ({"official_split": split} if split else {})


def _licence(licence: str, what: str) -> dict[str, str]:
    return {"package": "your own files", "version": "", "licence": licence, "what": what}
