"""Intervals of scores by the percentile bootstrap over items (Efron 1979; Efron & Tibshirani 1993, section 13.3).

Items are drawn with replacement, as many as there are, and the score of the drawn ones is taken; the interval lies
between the quantiles of many such scores. A score is a mean of items' values (`interval`) or is made of sums over the
items, as BLEU is of counts (`corpus_interval`). What was counted once over the whole set stays as it was: CIDEr's
document frequencies are those of all references, so that its interval is that of the mean of the images' values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
DRAWN = 1 << 22  # counts at a time: all of 200,000 questions × 1,000 resamples would be more than a gigabyte


def interval(values: ArrayLike, seed: int = 0, resamples: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """The interval (low, high) of the mean of items' values (N,).

    level: in (0, 1), what the interval covers. A given seed gives the same interval again.
    Errors: ValueError for no values, values that are not finite or not one an item, and settings out of range.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1:
        raise ValueError(f"values of shape {items.shape}: give one number an item")
    return corpus_interval(items[:, None], lambda sums: sums[:, 0] / len(items), seed, resamples, level)


def corpus_interval(
    statistics: ArrayLike, score: Score, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a score that is made of sums over the items.

    statistics: (N, K), what an item adds to each sum; score: sums (R, K) of R resamples to their scores (R,).
    Errors: as `interval`.
    """
    added = _checked(statistics, 2)
    return drawn_interval(len(added), lambda times: score(times @ added), seed, resamples, level)


def drawn_interval(
    count: int, score: Score, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The interval of any score of the items that are drawn.

    score: how often each item was drawn (R, N) in each of R resamples, to their scores (R,).
    Errors: ValueError for no items and settings out of range.
    """
    if count < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"{resamples} resamples of {count} items at level {level}: give at least one of each, a level in (0, 1)"
        )
    generator, step, scores = np.random.default_rng(seed), max(1, DRAWN // count), []
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        scores.append(score(np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)))
    low, high = np.quantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values: ArrayLike, dimensions: int) -> Array:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != dimensions or not items.size:
        raise ValueError(f"values of shape {items.shape}: give {('one number', 'a row')[dimensions - 1]} an item")
    if not np.isfinite(items).all():
        raise ValueError("an item's value is not a finite number: score every item before you ask for an interval")
    return items
