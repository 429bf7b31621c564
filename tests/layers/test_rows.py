from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lavit.layers.rows import SplitEmbedding, SplitHead
from lavit.tokens import IGNORE

TEXT, NEW, WIDTH = 11, 5, 6


@pytest.fixture
def embeddings():
    """A split embedding and the grown one that it must equal."""
    torch.manual_seed(0)
    split = SplitEmbedding(nn.Embedding(TEXT, WIDTH), NEW)
    grown = nn.Embedding(TEXT + NEW, WIDTH)
    grown.weight.data = torch.cat([split.text.weight, split.new.weight]).detach().clone()
    return split, grown


@pytest.fixture
def heads():
    torch.manual_seed(1)
    split = SplitHead(nn.Linear(WIDTH, TEXT, bias=False), NEW)
    grown = nn.Linear(WIDTH, TEXT + NEW, bias=False)
    grown.weight.data = torch.cat([split.text.weight, split.new.weight]).detach().clone()
    return split, grown


def gradients(split) -> torch.Tensor:
    return torch.cat([split.text.weight.grad, split.new.weight.grad])


def test_embedding_equals_a_grown_one_with_its_gradient(embeddings):
    split, grown = embeddings
    ids = torch.tensor([[0, TEXT - 1, TEXT, TEXT + NEW - 1], [3, TEXT, TEXT + 2, 3]])
    assert split(ids).shape == (2, 4, WIDTH)
    assert torch.equal(split(ids), grown(ids))
    weight = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    (split(ids) * weight).sum().backward()
    (grown(ids) * weight).sum().backward()
    assert torch.equal(gradients(split), grown.weight.grad)


@pytest.mark.parametrize("number", [-1, TEXT + NEW])
def test_id_out_of_range(embeddings, number):
    with pytest.raises(IndexError):
        embeddings[0](torch.tensor([2, number]))


def test_head_equals_a_grown_one_with_its_gradient(heads):
    split, grown = heads
    hidden = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    assert split(hidden).shape == (3, 4, TEXT + NEW)
    torch.testing.assert_close(split(hidden), grown(hidden), atol=1e-6, rtol=0)
    split(hidden).square().sum().backward()
    grown(hidden).square().sum().backward()
    torch.testing.assert_close(gradients(split), grown.weight.grad, atol=1e-5, rtol=1e-6)


def test_parts_freeze_apart(embeddings):
    split, _ = embeddings
    split.text.weight.requires_grad_(False)
    split(torch.tensor([1, TEXT + 1])).sum().backward()
    assert split.text.weight.grad is None
    assert split.new.weight.grad.sum(1).tolist() == [0, WIDTH, 0, 0, 0]


def test_nll_equals_dense_cross_entropy(heads):
    split, grown = heads
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(9, WIDTH, generator=generator)
    labels = torch.randint(TEXT + NEW, (9,), generator=generator)
    labels[[0, 4, 8]] = IGNORE
    ours, dense = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    nll = split.nll(ours, labels)
    expected = F.cross_entropy(grown(dense), labels, reduction="none", ignore_index=IGNORE)
    assert nll.shape == (9,) and nll.dtype == torch.float32
    assert nll[[0, 4, 8]].tolist() == [0, 0, 0]
    torch.testing.assert_close(nll, expected, atol=1e-6, rtol=0)
    weight = torch.rand(9, generator=generator)
    (nll * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, dense.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(split), grown.weight.grad, atol=1e-6, rtol=0)


def test_nll_of_equal_logits_is_the_logarithm_of_the_rows(heads):
    nll = heads[0].nll(torch.zeros(2, WIDTH), torch.tensor([0, TEXT]))
    torch.testing.assert_close(nll, torch.tensor([float(TEXT + NEW)] * 2).log())


def test_nll_without_labels_is_zero_and_still_has_gradients(heads):
    split, _ = heads
    nll = split.nll(torch.randn(3, WIDTH), torch.full((3,), IGNORE))
    assert torch.equal(nll, torch.zeros(3))
    nll.sum().backward()
    assert not gradients(split).any()


def test_nll_is_float32_for_half_precision_states(heads):
    split, _ = heads
    nll = split.bfloat16().nll(torch.randn(3, WIDTH).bfloat16(), torch.tensor([1, IGNORE, 2]))
    assert nll.dtype == torch.float32 and nll.isfinite().all()
