"""Figures that others published on standard sets: to be set beside measured ones, and never in their place."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """What a source says of a system, by set: CIDEr × 100, accuracy in percent, and FID, as ``coco_fid``."""

    system: str
    source: str
    figures: dict[str, float]


def _row(system: str, source: str, *values: float | None) -> Published:
    sets = ("coco_captions", "nocaps", "flickr30k", "vqav2", "okvqa", "gqa", "vizwiz", "coco_fid")
    return Published(system, source, {name: v for name, v in zip(sets, values, strict=True) if v is not None})


PUBLISHED = (
    _row("LaVIT, LLaMA-7B", "arXiv 2309.04669", 134.0, 114.2, 83.0, 66.0, 54.6, 46.8, 38.5, 7.4),
    _row("LaVIT v1, Llama-2-7B", "its repository", 134.6, 113.1, 83.2, 68.2, 55.7, 48.0, 45.3, 7.2),
    _row("LaVIT v2, Llama-2-7B", "its repository", 133.3, 112.0, 81.4, 68.3, 55.9, 47.9, 41.0, 7.1),
    _row("Emu-13B", "arXiv 2309.04669", 112.4, None, None, 52.0, 38.2, None, 34.2, 11.7),
    _row("BLIP-2, Vicuna-7B", "arXiv 2309.04669", None, 107.5, 74.9, None, None, 41.3, 25.3, None),
)
