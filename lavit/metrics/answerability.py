"""Whether a question can be answered at all (VizWiz; arXiv 1802.08218): average precision and F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
