"""GenEval's prompts (arXiv 2310.11513), and its folder of drawings as the official scorer reads it.

```
00000/metadata.jsonl        the prompt's line of evaluation_metadata.jsonl
00000/samples/0000.png …    its drawings
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavit.benchmarks.drawings import DrawingConfig, check_drawing
from lavit.runs import write_atomic

KEY = "evaluation.geneval"
SOURCE = "https://github.com/djghosh13/geneval/blob/main/prompts/evaluation_metadata.jsonl"
RELATIONS = ("left of", "right of", "above", "below")


@dataclass
class GenEvalConfig:
    """GenEval of drawings.

    Attributes:
        prompts: the official ``evaluation_metadata.jsonl``, 553 lines.
        samples: drawings of each prompt; published figures are of four.
        detector: a folder of transformers that finds objects of COCO's classes: an object detector (DETR), or a
            Mask2Former of instances. Published figures are by a Mask2Former of Swin-S. Without one nothing is scored,
            and the official scorer can read the drawings. Colours are judged by ``evaluation.clip``, there ViT-L/14.
        drawing: how they are drawn.
    """

    prompts: str | None = None
    samples: int = 4
    detector: str | None = None
    drawing: DrawingConfig = field(default_factory=DrawingConfig)


def check_geneval(config: GenEvalConfig) -> None:
    """Raises ValueError, naming the key, for what can be seen to be wrong before anything is opened."""
    if config.samples < 1:
        raise ValueError(f"{KEY}.samples is {config.samples}; it must be at least 1")
    check_drawing(config.drawing, f"{KEY}.drawing")


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The lines of ``evaluation_metadata.jsonl``: ``tag``, ``prompt``, ``include`` and, of counts, ``exclude``.

    Raises:
        ValueError: no such file, no lines, or one that lacks a key or has a wrong value (named, with its line).
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{KEY}.prompts: {path} cannot be read ({error}); get it from {SOURCE}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(_checked(json.loads(line)))
            except json.JSONDecodeError as error:
                what = f"it is no JSON ({error.msg} at character {error.pos})"
                raise ValueError(f"{KEY}.prompts: {path}, line {number}: {what}") from None
            except ValueError as error:
                raise ValueError(f"{KEY}.prompts: {path}, line {number}: {error}") from None
    if not prompts:
        raise ValueError(f"{KEY}.prompts: {path} holds no prompts")
    return prompts


def _checked(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise ValueError("it is no mapping")
    for key in ("tag", "prompt"):
        if not isinstance(line.get(key), str) or not line[key].strip():
            raise ValueError(f"it has no '{key}' that is a text")
    for key in ("include", "exclude"):
        wanted = line.get(key, [])
        if not isinstance(wanted, list) or key == "include" and not wanted:
            raise ValueError(f"it has no '{key}' that is a list of objects")
        for place, one in enumerate(wanted):
            _check_object(one, f"{key}[{place}]", place)
    return line


def _check_object(one: Any, name: str, place: int) -> None:
    if not isinstance(one, dict) or not isinstance(one.get("class"), str):
        raise ValueError(f"{name} has no 'class' that is a text")
    if type(one.get("count")) is not int or one["count"] < 1:
        raise ValueError(f"{name} has no 'count' that is a whole number above 0")
    if "color" in one and not isinstance(one["color"], str):
        raise ValueError(f"{name} has a 'color' that is no text")
    if "position" in one:
        position = one["position"]
        known = isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS
        if not known or type(position[1]) is not int or not 0 <= position[1] < place:
            raise ValueError(
                f"{name} has a 'position' {position!r}; it must be one of {', '.join(RELATIONS)} and the number of an "
                "object before it"
            )


def sample_path(folder: Path, prompt: int, sample: int) -> Path:
    return folder / f"{prompt:05}" / "samples" / f"{sample:04}.png"


def write_layout(folder: Path, prompts: list[dict[str, Any]]) -> None:
    """The official folders with what each prompt is; drawings that are there stay."""
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        if not (place / "metadata.jsonl").is_file():
            write_atomic(place / "metadata.jsonl", json.dumps(prompt))
