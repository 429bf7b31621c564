"""What users give a system: one thing or a list of them, seeds, prompts of texts and images."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lavit.data.images import SUFFIXES
from lavit.tokens import Picture

Plan = TypeVar("Plan")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_device(device: str | torch.device | None) -> torch.device:
    """The device, by default a GPU if there is one; raises ValueError if it cannot be used."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found).cpu()
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA, the former of "meta" too
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}; 'cpu' always can") from None
    return found


def device_of_rank() -> torch.device:
    """The GPU of this process, by its rank on this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of that name; raises ValueError for one that models are not kept in."""
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype {dtype} is unknown; choose {', '.join(DTYPES)}")
    return found


def as_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of a user's; raises ValueError for anything else and out of range."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or most is not None and number > most:
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value}; give a whole number, {allowed}")
    return number


def as_number(name: str, value: Any) -> float:
    """A finite number of a user's; raises ValueError for anything else."""
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value}; give a number")
    return number


def as_seeds(seed: Any, count: int) -> list[int]:
    """``count`` seeds of one, or of a sequence of just so many.

    Raises:
        ValueError: fewer or more, or numbers that are no seeds.
    """
    several = isinstance(seed, Sequence | Tensor | np.ndarray) and not isinstance(seed, str)
    given = list(seed) if several and getattr(seed, "ndim", 1) else [seed] * count
    seeds = [as_count("seed", number, 0, 2**63 - 1) for number in given]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} pictures; give one seed, or one a picture")
    return seeds


def as_plan(plan: Any, default: Plan) -> Plan:
    """The plan that was given, else the default; raises ValueError for one of another kind."""
    if plan is not None and type(plan) is not type(default):
        raise ValueError(f"plan is a {type(plan).__name__}; give a {type(default).__name__}")
    return default if plan is None else plan


def as_list(value: Any) -> tuple[list[Any], bool]:
    """A list of what was given, and whether it was a single one."""
    if isinstance(value, list) or getattr(value, "ndim", 0) == 4:
        return list(value), False
    return [value], True


def like_given(values: list[Any], alone: bool) -> Any:
    """One result for what was given alone, else the list."""
    return values[0] if alone else values


def as_drawing_prompts(texts: Any, images: Any) -> tuple[list[tuple[Any, ...]], bool]:
    """One tuple of texts and images a drawing, and whether a single one was asked for.

    Raises:
        ValueError: texts and images that are not for each other, or a prompt with nothing in it.
    """
    several, alone = as_list(texts)
    if not alone and images is not None and not (_is_several(images) or getattr(images, "ndim", 0) == 4):
        raise ValueError("images is a single one beside a list of texts; give a list with one entry (or None) a text")
    shown = [images] if alone else [None] * len(several) if images is None else list(images)
    if len(shown) != len(several):
        raise ValueError(f"{len(several)} texts and {len(shown)} entries of images; give one entry a text")
    prompts = []
    for text, its in zip(several, shown, strict=True):
        named = [] if its is None else as_list(list(its) if _is_several(its) else its)[0]
        before = [Path(image) if isinstance(image, str) else image for image in named]
        after = () if text is None else as_tuple(text)
        if isinstance(text, str) and not is_text(text):
            raise ValueError(f"'{text}' stands where a text is expected; give it as images, or in a tuple")
        if not any(not isinstance(part, str) or part.strip() for part in (*before, *after)):
            raise ValueError("the prompt is empty; say what to draw, or give an image")
        prompts.append((*before, *after))
    return prompts, alone


def _is_several(value: Any) -> bool:
    return isinstance(value, list | tuple) and not isinstance(value, Picture)


def as_tuple(prompt: Any) -> tuple[Any, ...]:
    """The parts of a prompt, which may be a single text or picture."""
    return prompt if isinstance(prompt, tuple) and _is_several(prompt) else (prompt,)


def is_text(part: Any) -> bool:
    """Whether a part of a prompt is a text and no image, which may be named by its file."""
    return isinstance(part, str) and not part.lower().endswith(SUFFIXES)


def text_of(prompt: Any) -> str:
    """All that a prompt says in words."""
    return " ".join(part for part in as_tuple(prompt) if isinstance(part, str))


def batches(values: Sequence[Any] | Tensor, size: int) -> Iterator[Any]:
    """Slices of at most ``size``, in order."""
    return (values[start : start + size] for start in range(0, len(values), size))


def in_parts(values: list[Any], counts: list[int]) -> list[list[Any]]:
    """Consecutive parts of ``counts`` values each."""
    rest = iter(values)
    return [[next(rest) for _ in range(count)] for count in counts]
