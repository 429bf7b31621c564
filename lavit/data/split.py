"""Which split an example belongs to, by its concept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass
class SplitConfig:
    """Shares of the concepts; the rest trains.

    Args:
        validation: share from 0 to 1, for choosing settings.
        test: share from 0 to 1, for the figures that are reported.
        seed: another seed gives another split.
    """

    validation: float = 0.05
    test: float = 0.1
    seed: int = 0


def assign_split(concept: str, seed: int, validation: float, test: float) -> str:
    """``train``, ``validation`` or ``test``, from nothing but the arguments: the same on every machine.

    Raises:
        ValueError: a share below 0, or shares that leave nothing to train on.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(f"split: validation={validation} and test={test} must be at least 0 and sum to less than 1")
    place = unit_hash(f"{seed}\0{concept}")
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def unit_hash(text: str) -> float:
    """A stable pseudo-random number in [0, 1) for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
