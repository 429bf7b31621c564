"""What is asked of a model: pictures to caption, questions to answer, and what others said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """One picture to caption, or one question.

    Attributes:
        id: what a submission names: the image's id for captions, the question's id for questions.
        image: the picture's file; None where a question has none (ScienceQA).
        question: None for captions.
        references: captions or answers, as the owner wrote them; () where the owner keeps them to score a test split.
        about: what scores are grouped by or need: ``domain``, ``answer_type``, ``choices`` and so on.
    """

    id: int | str
    image: Path | None
    question: str | None
    references: tuple[str, ...]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One split of a standard set.

    Attributes:
        name: in ``lavit.benchmarks.sets.SETS``.
        task: ``caption`` or ``question``.
        items: at least one, in the order of the official file, with ids that differ.
        digest: sha256 of the annotation files that were read, one after another.
    """

    name: str
    task: str
    split: str
    items: tuple[Item, ...]
    digest: str
