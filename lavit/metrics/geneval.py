"""GenEval's rules (arXiv 2310.11513): is what a prompt asks for among the objects that a detector found in a drawing?

Thresholds and the order of checks are those of the official scorer, https://github.com/djghosh13/geneval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, TypeVar

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3  # of a detection's score, above which it counts
COUNTING_THRESHOLD = 0.9  # for prompts about numbers
MOST = 16  # objects of a class that are looked at
MARGIN = 0.1  # share of both sizes by which two centres must differ


class Found(Protocol):
    """An object in a picture: ``box`` is left, top, right and bottom in pixels, ``score`` is in [0, 1]."""

    @property
    def box(self) -> tuple[float, float, float, float]: ...

    @property
    def score(self) -> float: ...


Object = TypeVar("Object", bound=Found)


def counted(found: Mapping[str, Sequence[Object]], tag: str) -> dict[str, list[Object]]:
    """The objects of each class that count for a prompt of kind ``tag``, the surest first; classes without any left
    out."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept = {
        name: sorted((one for one in objects if one.score > least), key=lambda one: -one.score)[:MOST]
        for name, objects in found.items()
    }
    return {name: objects for name, objects in kept.items() if objects}


def relations(a: Found, b: Found) -> set[str]:
    """Where a is, seen from b: none, one or two of :data:`RELATIONS`.

    Centres that differ by less than a tenth of both sizes are not apart in that direction; the rest of the difference
    must be more than half of the distance.
    """
    offsets, apart = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        margin = MARGIN * (abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low]))
        offsets.append(offset)
        apart.append(math.copysign(max(abs(offset) - margin, 0), offset))
    if max(map(abs, apart)) < 1e-3:
        return set()
    x, y = (part / math.hypot(*offsets) for part in apart)
    places = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in places.items() if holds}


def judge(
    prompt: Mapping[str, Any],
    objects: Mapping[str, Sequence[Object]],
    colours: Callable[[str, Sequence[Object]], Sequence[str]],
) -> tuple[bool, str]:
    """Whether a drawing is what its prompt asks for, and if not, why.

    Args:
        prompt: a line of the official ``evaluation_metadata.jsonl``.
        objects: what :func:`counted` kept.
        colours: the colour of each of some objects of a class; asked only where the prompt names one.
    """
    reasons: list[str] = []
    groups: list[Sequence[Object] | None] = []
    for wanted in prompt.get("include", ()):
        name, count = wanted["class"], wanted["count"]
        group = list(objects.get(name, ()))[:count]
        fault = ""
        if len(group) < count:
            fault = f"{len(group)} of {count} {name}"
        elif "color" in wanted:
            seen = list(colours(name, group))
            if seen.count(wanted["color"]) < count:
                fault = f"{name} is {', '.join(seen)} and not {wanted['color']}"
        if not fault and "position" in wanted:
            fault = _misplaced(name, group, groups, *wanted["position"])
        reasons += [fault] if fault else []
        groups.append(None if fault else group)
    for unwanted in prompt.get("exclude", ()):
        if (number := len(objects.get(unwanted["class"], ()))) >= unwanted["count"]:
            reasons.append(f"{number} {unwanted['class']}, which is {unwanted['count']} or more")
    return not reasons, "; ".join(reasons)


def _misplaced(name: str, group: Sequence[Object], groups: Sequence[Any], relation: str, target: int) -> str:
    """Why the objects are not all so related to those of an earlier request; empty if they are."""
    if groups[target] is None:
        return f"nothing for {name} to be {relation}"
    places = [relations(one, other) for one in group for other in groups[target]]
    wrong = [place for place in places if relation not in place]
    return f"{name} is {' and '.join(sorted(wrong[0])) or 'nowhere clear'} and not {relation}" if wrong else ""


def summary(results: Sequence[Mapping[str, Any]], prompts: int | None = None) -> dict[str, float]:
    """Scores as fractions of the drawings that are right: ``overall`` is the mean over kinds of prompts, as published.

    Args:
        results: of each drawing ``tag``, ``correct`` and ``prompt``, the number of its prompt.
        prompts: of how many prompts there must be results.

    Returns:
        A score by tag, ``overall``, ``images_correct`` of all drawings, and ``prompts_correct``, where one of a
        prompt's drawings is enough.

    Raises:
        ValueError: no results, or not of as many prompts.
    """
    by_prompt: dict[Any, list[bool]] = {}
    by_tag: dict[str, list[bool]] = {}
    for result in results:
        by_prompt.setdefault(result["prompt"], []).append(bool(result["correct"]))
        by_tag.setdefault(result["tag"], []).append(bool(result["correct"]))
    if not by_prompt or len(by_prompt) != (prompts or len(by_prompt)):
        raise ValueError(f"there are results of {len(by_prompt)} prompts and not of {prompts or 'any'}")
    tags = {tag: fmean(right) for tag, right in by_tag.items()}
    return {
        "overall": fmean(tags.values()),
        **tags,
        "images_correct": fmean(right for rights in by_prompt.values() for right in rights),
        "prompts_correct": fmean(any(rights) for rights in by_prompt.values()),
    }
