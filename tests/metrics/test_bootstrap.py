from __future__ import annotations

import numpy as np
import pytest

from lavit.metrics.bootstrap import corpus_interval, drawn_interval, interval


def test_an_interval_of_a_share_is_near_the_normal_one():
    values = np.zeros(2000)
    values[:600] = 1
    low, high = interval(values, resamples=4000)
    half = 1.96 * (0.3 * 0.7 / 2000) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.001) and high == pytest.approx(0.3 + half, abs=0.001)
    narrow = interval(values, resamples=4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * half / 1.96, rel=0.1)


def test_it_is_seeded_and_does_not_hang_on_how_many_are_drawn_at_a_time(monkeypatch):
    values = np.random.default_rng(1).normal(size=50)
    first = interval(values, seed=3)
    assert interval(values, seed=3) == first != interval(values, seed=4)
    monkeypatch.setattr("lavit.metrics.bootstrap.DRAWN", 120)
    assert interval(values, seed=3) == pytest.approx(first)


def test_equal_values_have_no_spread():
    assert interval([0.25] * 7) == (0.25, 0.25) and interval([1.0]) == (1.0, 1.0)


def test_a_score_of_sums():
    counts = np.array([[1, 2], [0, 2], [2, 2], [1, 4]] * 50)
    ratio = corpus_interval(counts, lambda sums: sums[:, 0] / sums[:, 1], seed=5)
    assert ratio[0] < 4 / 10 < ratio[1] and ratio[1] - ratio[0] < 0.15
    # Of the same items, a mean is a ratio to their number.
    ones = np.stack([counts[:, 0], np.ones(len(counts))], axis=1)
    assert corpus_interval(ones, lambda sums: sums[:, 0] / sums[:, 1], seed=5) == interval(counts[:, 0], seed=5)


def test_as_scipy_has_it():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(2).exponential(size=400)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert interval(values, resamples=4000) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([]), "shape"),
        (lambda: interval([[1.0]]), "one number an item"),
        (lambda: interval([1.0, float("nan")]), "not a finite number"),
        (lambda: interval([1.0], resamples=0), "0 resamples"),
        (lambda: interval([1.0], level=1.0), "level 1.0"),
        (lambda: drawn_interval(0, lambda times: times[:, 0]), "0 items"),
        (lambda: corpus_interval([1.0], lambda sums: sums[:, 0]), "a row an item"),
    ],
)
def test_what_has_no_interval(call, message):
    with pytest.raises(ValueError, match=message):
        call()
