from __future__ import annotations

from collections import Counter

import pytest
import torch

from lavit.metrics.retrieval import chance_recall, derangements, nearer_rate, nearest, nearest_texts, recall_at


def test_recall_at_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]])
    target = torch.tensor([0, 2, 2])  # ranks 1, 2, 3
    assert [recall_at(similarity, target, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_constant_similarity_gives_chance(k):
    found = recall_at(torch.zeros(5, 7), torch.tensor([0, 1, 2, 3, 6]), k)
    assert found == pytest.approx(chance_recall(7, k))


def test_ties_count_as_their_expectation():
    similarity = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.0]])  # the target is second, third or fourth
    target = torch.tensor([2])
    assert [recall_at(similarity, target, k) for k in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_recall_at_refuses():
    similarity, target = torch.rand(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="k is 5 among 4"):
        recall_at(similarity, target, 5)
    with pytest.raises(ValueError, match=r"in \[0, 4\)"):
        recall_at(similarity, target + 2, 1)
    with pytest.raises(ValueError, match="not a number"):
        recall_at(similarity * torch.nan, target, 1)
    with pytest.raises(ValueError, match="give .N, M. and .N,."):
        recall_at(similarity, target[:2], 1)


def test_chance_recall():
    assert chance_recall(200, 5) == 0.025
    with pytest.raises(ValueError, match="k is 0"):
        chance_recall(10, 0)


def test_nearer_rate_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5]])
    assert nearer_rate(similarity, torch.tensor([0, 1])) == pytest.approx((1 + 0) / 2)
    assert nearer_rate(similarity[:1], torch.tensor([2])) == pytest.approx((1 + 0.5) / 3), "equals count half"
    assert nearer_rate(torch.zeros(5, 7), torch.tensor([0, 1, 2, 3, 6])) == 0.5
    with pytest.raises(ValueError, match="no other one"):
        nearer_rate(torch.zeros(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"in \[0, 4\)"):
        nearer_rate(similarity, torch.tensor([0, 4]))


def test_derangements():
    found = derangements(10, 20, seed=1)
    assert found.shape == (20, 10) and found.dtype == torch.int64
    assert (found.sort(1).values == torch.arange(10)).all() and (found != torch.arange(10)).all()
    assert torch.equal(found, derangements(10, 20, seed=1)) and not torch.equal(found, derangements(10, 20, seed=2))
    with pytest.raises(ValueError, match="at least two things"):
        derangements(1, 1, seed=0)


def test_derangements_are_uniform():
    counts = Counter(map(tuple, derangements(4, 4500, seed=0).tolist()))
    assert len(counts) == 9  # !4
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())


def test_nearest():
    keys = torch.tensor([[100.0, 0.0], [0.0, 0.1], [-1.0, -1.0]])
    queries = torch.tensor([[1.0, 3.0], [0.1, 0.0], [-5.0, -4.0]])
    found = nearest(queries, keys)  # the angle decides, not the length
    assert found.tolist() == [1, 0, 2] and found.dtype == torch.int64
    assert nearest(queries[:1], keys[[1, 1]]).tolist() == [0]
    with pytest.raises(ValueError, match="M > 0"):
        nearest(queries, keys[:, :1])
    with pytest.raises(ValueError, match="not finite"):
        nearest(queries / 0, keys)


def test_nearest_texts():
    keys = ["food: red apple", "food: pear", "animals: red panda", "animals: panda with a red apple and a pear"]
    assert nearest_texts(["Food, pear!", "a panda", "food: apple", "food"], keys) == [1, 3, 0, 1], (
        "rare words weigh more"
    )
    assert nearest_texts(["animals: panda", "pear food"], [*keys, "pear: food"]) == [2, 1], "the first of equals"
    assert nearest_texts(["violin", ""], keys) == [0, 0], "the first of all where no word is shared"
    with pytest.raises(ValueError, match="no texts"):
        nearest_texts(["a"], [])
