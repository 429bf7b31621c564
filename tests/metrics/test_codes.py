from __future__ import annotations

import math

import pytest
import torch

from lavit.metrics.codes import code_usage, perplexity


def test_perplexity():
    assert perplexity(torch.full((16,), 3)) == pytest.approx(16)
    assert perplexity(torch.tensor([0, 7, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    assert perplexity(torch.tensor([1, 3])) == pytest.approx(math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))


def test_code_usage():
    usage = code_usage(torch.tensor([5, 5, 0, 7, 0, 7]), 8)
    assert usage == {"used": 3, "utilization": 3 / 8, "perplexity": pytest.approx(3), "n": 6}
    assert code_usage(torch.arange(32), 32)["utilization"] == 1


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([0, 8]), r"codes in \[0, 8\) *$"),
        (torch.tensor([-1, 2]), r"codes in \[-1, 2\]"),
        (torch.tensor([], dtype=torch.int64), "n > 0"),
        (torch.tensor([[1, 2]]), "give .n,. int64"),
        (torch.tensor([1.0]), "float32"),
    ],
)
def test_code_usage_refuses(codes, message):
    with pytest.raises(ValueError, match=message):
        code_usage(codes, 8)


@pytest.mark.parametrize(
    "counts", [torch.zeros(4), torch.tensor([1, -1]), torch.tensor([1.0, torch.nan]), torch.ones(2, 2)]
)
def test_perplexity_refuses(counts):
    with pytest.raises(ValueError, match="counts of shape"):
        perplexity(counts)
