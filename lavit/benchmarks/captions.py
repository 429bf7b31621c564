"""Readers of sets of captions: Karpathy's splits of COCO and Flickr30k, and NoCaps."""

from __future__ import annotations

from typing import Any

from lavit.benchmarks.files import OfficialFile, SetFolder, named
from lavit.benchmarks.items import Item

DOMAINS = ("in-domain", "near-domain", "out-domain")


def read_coco(folder: SetFolder, split: str) -> list[Item]:
    """``dataset_coco.json``; the 30,504 images that it calls ``restval`` belong to training (arXiv 1412.2306).

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    return _karpathy(folder, ("train", "restval") if split == "train" else (split,), "cocoid", below="filepath")


def read_flickr30k(folder: SetFolder, split: str) -> list[Item]:
    """``dataset_flickr30k.json``, whose ids are its own numbering, ``imgid``.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    return _karpathy(folder, (split,), "imgid", below=None)


def read_nocaps(folder: SetFolder, split: str) -> list[Item]:
    """``nocaps_val_4500_captions.json`` with domains, or ``nocaps_test_image_info.json``, without captions.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    file = folder.read("captions")
    images = file.take(file.content, "images", list)
    ids = [file.take(entry, "id", int, "images", n) for n, entry in enumerate(images)]
    names = [file.take(entry, "file_name", str, "images", n) for n, entry in enumerate(images)]
    abouts = [_domain(file, entry, n, needed=split == "val") for n, entry in enumerate(images)]
    captions = _nocaps_captions(file, ids) if split == "val" else {}
    paths = folder.images(names)
    return [
        Item(number, paths[name], None, tuple(captions.get(number, ())), about)
        for number, name, about in zip(ids, names, abouts, strict=True)
    ]


def _karpathy(folder: SetFolder, splits: tuple[str, ...], id_key: str, below: str | None) -> list[Item]:
    file = folder.read("captions")
    rows = []
    for n, entry in enumerate(file.take(file.content, "images", list)):
        if file.take(entry, "split", str, "images", n) not in splits:
            continue
        name = file.take(entry, "filename", str, "images", n)
        if below is not None:
            name = f"{file.take(entry, below, str, 'images', n)}/{name}"
        sentences = file.take(entry, "sentences", list, "images", n)
        if not sentences:
            raise file.altered(f"images[{n}] has no sentence")
        captions = tuple(file.take(sentence, "raw", str, "images", n, "sentences") for sentence in sentences)
        rows.append((file.take(entry, id_key, int, "images", n), name, captions))
    paths = folder.images(name for _, name, _ in rows)
    return [Item(number, paths[name], None, captions, {}) for number, name, captions in rows]


def _domain(file: OfficialFile, entry: dict[str, Any], n: int, needed: bool) -> dict[str, str]:
    if not needed and "domain" not in entry:
        return {}
    domain = file.take(entry, "domain", str, "images", n)
    if domain not in DOMAINS:
        raise file.altered(f"images[{n}].domain is {domain!r} and none of {', '.join(DOMAINS)}")
    return {"domain": domain}


def _nocaps_captions(file: OfficialFile, ids: list[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {number: [] for number in ids}
    for n, entry in enumerate(file.take(file.content, "annotations", list)):
        number = file.take(entry, "image_id", int, "annotations", n)
        if number not in found:
            raise file.altered(f"annotations[{n}] is of image {number}, which is not there")
        found[number].append(file.take(entry, "caption", str, "annotations", n))
    if bare := [number for number, captions in found.items() if not captions]:
        raise file.altered(f"images {named(bare)} have no caption")
    return found
