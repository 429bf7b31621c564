from __future__ import annotations

import numpy as np
import pytest

from lavit.metrics.answerability import average_precision, f1_score, resampled_precision


def test_average_precision_by_hand():
    # By score: right, wrong, right. Half of the recall at precision 1, half at 2/3.
    assert average_precision([True, False, True], [0.9, 0.8, 0.1]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision([False, True], [0.9, 0.1]) == 0.5
    assert average_precision([True, False, True, False], [0.5] * 4) == 0.5  # equal scores come together


def test_a_resample_is_the_average_precision_of_what_was_drawn():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(30) < 0.4, generator.integers(0, 8, 30) / 8
    drawn = generator.integers(30, size=(20, 30))
    times = np.stack([np.bincount(row, minlength=30) for row in drawn]).astype(float)
    expected = [average_precision(positive[row], scores[row]) for row in drawn]
    assert resampled_precision(positive, scores, times) == pytest.approx(expected)
    assert resampled_precision([True, False], [0.1, 0.2], np.array([[0.0, 2.0]])) == [0]


def test_as_scikit_learn_has_it():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    for _ in range(50):
        positive, scores = generator.random(40) < 0.5, generator.integers(0, 12, 40) / 12
        assert average_precision(positive, scores) == pytest.approx(metrics.average_precision_score(positive, scores))
        called = scores > 0.5
        sums = np.array([[(positive & called).sum(), positive.sum(), called.sum()]], dtype=float)
        assert f1_score(sums)[0] == pytest.approx(metrics.f1_score(positive, called, zero_division=0))


def test_f1_by_hand():
    assert f1_score(np.array([[2.0, 4.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [pytest.approx(2 / 3), 0]


@pytest.mark.parametrize("positive, scores", [([False, False], [0.1, 0.2]), ([True], [0.1, 0.2]), ([], [])])
def test_what_has_no_average_precision(positive, scores):
    with pytest.raises(ValueError, match="items are positive"):
        average_precision(positive, scores)
