"""Answers to questions with choices: which one a text means, and whether there is an answer at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LETTER = re.compile(r"\(?([A-Z])(?:\)?[.:,]?|[.):]\)? .+)", re.IGNORECASE | re.DOTALL)  # A   A.   (A)   (A) a dog
SAID = re.compile(r"\banswer(?: is|:) *(?:: *)?\(?([A-Z])\)?(?![\w'])", re.IGNORECASE)  # The answer is A.
INTRODUCTION = re.compile(r"(?:the )?(?:correct |right )?answer(?: is|:)", re.IGNORECASE)


def choice_index(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text means; None where it names none of them, or several.

    Read are a choice's own words (first, should choices be letters themselves), a letter alone ("A", "a.", "(A)"),
    before the words ("A. a dog", "(A) a dog") or said to be the answer ("The answer is A."), and "The answer is a dog."
    Case and a final full stop do not count. ScienceQA's own evaluation (arXiv 2209.09513) reads "The answer is A." and
    guesses at random for what it cannot read; here that is an answer that is wrong.
    Errors: ValueError for no choices.
    """
    if not choices or isinstance(choices, str):
        raise ValueError(f"choices are {choices!r}: give a list of at least one")
    text = " ".join(text.split())
    words = [_plain(choice) for choice in choices]
    if (plain := _plain(text)) in words:
        return words.index(plain)
    found = LETTER.fullmatch(text)
    letters = [found[1]] if found else SAID.findall(text)
    if len({letter.upper() for letter in letters}) == 1:
        index = ord(letters[0].upper()) - ord("A")
        return index if index < len(choices) else None
    if (said := _plain(INTRODUCTION.sub("", text, count=1))) in words:
        return words.index(said)
    return None


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").strip().casefold()


def average_precision(positive: Sequence[bool], scores: Sequence[float]) -> float:
    """The area under precision by recall, in steps: Σ (recallₙ − recallₙ₋₁) precisionₙ over the distinct scores, the
    highest first; as scikit-learn and VizWiz' evaluation have it.

    Errors: ValueError for lengths that differ, no items, and none that is positive.
    """
    return float(resampled_precision(positive, scores, np.ones((1, len(scores))))[0])


def resampled_precision(
    positive: Sequence[bool], scores: Sequence[float], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precisions (R,) of R resamples that hold item n `times` (R, N) often; 0 for one without a positive."""
    true, ranked = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    if true.shape != ranked.shape or not true.any():
        raise ValueError(
            f"{true.sum()} of {len(true)} items are positive, with {len(ranked)} scores: give a score each"
        )
    order = np.argsort(-ranked, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(ranked[order])), len(order) - 1)  # of equal scores, which come together
    found = np.cumsum(times[:, order] * true[order], axis=1)[:, ends]
    taken = np.cumsum(times[:, order], axis=1)[:, ends]
    precision = found / np.maximum(taken, 1)
    gained = np.diff(found, axis=1, prepend=0)
    return (precision * gained).sum(axis=1) / np.maximum(found[:, -1], 1)


def f1_score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 (R,) = 2 right / (positive + called positive) of sums (R, 3) of these; 0 where there are none."""
    return 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)
