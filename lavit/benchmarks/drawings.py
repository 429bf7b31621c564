"""Pictures drawn for a standard measure: how they are drawn, and of which captions."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavit.data.order import generator_for
from lavit.generation.plans import ImagePlan, check_plan


@dataclass
class DrawingConfig:
    """How pictures are drawn; what is left out is as in ``evaluation.image`` and ``decoder.model``.

    Attributes:
        candidates: drawings of a text, one of which is kept: the one that ``evaluation.clip`` finds most like the text
            (LaVIT's protocol, arXiv 2309.04669, has four), or, without CLIP, the one that the model captions best.
        words: how visual words are sampled.
        guidance, steps, sampler: of the pixel decoder.
    """

    candidates: int = 1
    words: ImagePlan | None = None
    guidance: float | None = None
    steps: int | None = None
    sampler: str | None = None


def check_drawing(config: DrawingConfig, key: str) -> None:
    """Raises ValueError, naming the key, for what can be seen to be wrong before a model is opened."""
    if config.candidates < 1:
        raise ValueError(f"{key}.candidates is {config.candidates}; it must be at least 1")
    if config.words is not None:
        check_plan(config.words, f"{key}.words")
    if config.guidance is not None and not math.isfinite(config.guidance):
        raise ValueError(f"{key}.guidance is {config.guidance}; give a number")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"{key}.steps is {config.steps}; it must be at least 1")


def read_captions(path: str | Path, key: str) -> list[str]:
    """The captions of a file, one of each image: lines of ``{"caption": …, "image_id": …}``, or COCO's annotations.

    Of an image's captions the one with the lowest digest is taken: by lot, and always the same. Without ``image_id``
    every line is of another image.

    Raises:
        ValueError: no such file, another format, or a caption that is missing or empty (with its line or number).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {path} cannot be read ({error})") from None
    by_image: dict[Any, list[str]] = {}
    for place, line in _caption_lines(path, text, key):
        caption = line.get("caption") if isinstance(line, dict) else None
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f'{key}: {path}, {place} has no "caption" that is a text')
        image = line.get("image_id", place)
        if not isinstance(image, str | int):
            raise ValueError(f'{key}: {path}, {place} has an "image_id" that is neither a text nor a number')
        by_image.setdefault(image, []).append(" ".join(caption.split()))
    if not by_image:
        raise ValueError(f"{key}: {path} holds no captions")
    return [min(captions, key=lambda text: hashlib.sha256(text.encode()).digest()) for captions in by_image.values()]


def _caption_lines(path: Path, text: str, key: str) -> list[tuple[str, Any]]:
    """What describes each caption, and where it stands."""
    place = "the file"
    try:
        if path.suffix == ".json":
            return [(f"annotation {n}", line) for n, line in enumerate(json.loads(text)["annotations"])]
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            place = f"line {number}"
            rows += [(place, json.loads(line))] if line.strip() else []
        return rows
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f'{key}: {path} is neither COCO\'s annotations (.json with "annotations") nor lines of JSON ({place})'
        ) from None


def sampled(captions: list[str], count: int, seed: int, key: str) -> list[str]:
    """``count`` of the captions by lot, in their order; 0 takes all.

    Raises:
        ValueError: there are fewer.
    """
    if count > len(captions):
        raise ValueError(f"{key} is {count}, and there are {len(captions)} captions of different images; lower it")
    chosen = torch.randperm(len(captions), generator=generator_for(seed))[: count or len(captions)].sort().values
    return [captions[n] for n in chosen.tolist()]
