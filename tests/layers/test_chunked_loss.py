from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lavit.layers import chunked_loss
from lavit.layers.chunked_loss import chunked_kl, chunked_nll

TOKENS, WIDTH, SIZE = 23, 5, 13


def case(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    rows = torch.randn(SIZE, WIDTH, generator=generator)
    labels = torch.randint(SIZE, (TOKENS,), generator=generator)
    return hidden, labels, torch.rand(TOKENS, generator=generator), rows


def dense(hidden, labels, weights, rows, z_loss: float = 0.0) -> torch.Tensor:
    logits = F.linear(hidden, rows)
    nll = F.cross_entropy(logits, labels, reduction="none")
    return (weights * (nll + z_loss * logits.logsumexp(-1).square())).sum()


@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_equals_the_dense_loss_with_its_gradients(monkeypatch, chunk, z_loss):
    monkeypatch.setattr(chunked_loss, "AT_ONCE", chunk * SIZE)
    hidden, labels, weights, rows = case()
    ours = [x.clone().requires_grad_() for x in (hidden, rows)]
    theirs = [x.clone().requires_grad_() for x in (hidden, rows)]
    loss, nll = chunked_nll(F.linear, ours[0], labels, weights, ours[1:], SIZE, z_loss)
    expected = dense(theirs[0], labels, weights, theirs[1], z_loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(F.linear(hidden, rows), labels, reduction="none"))
    (-2 * loss).backward()
    (-2 * expected).backward()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-5, rtol=1e-5)


def test_z_loss_pulls_the_denominator_to_one():
    hidden, labels, weights, rows = case()
    plain, pulled = (chunked_nll(F.linear, hidden, labels, weights, [rows], SIZE, z)[0] for z in (0.0, 1.0))
    z = F.linear(hidden, rows).logsumexp(-1).square()
    assert (pulled - plain).item() == pytest.approx((weights * z).sum().item(), rel=1e-5)


def test_no_chunk_is_larger_than_said(monkeypatch):
    monkeypatch.setattr(chunked_loss, "AT_ONCE", 4 * SIZE)
    sizes = []

    def watched(hidden, rows):
        sizes.append(len(hidden))
        return F.linear(hidden, rows)

    hidden, labels, weights, rows = case()
    chunked_nll(watched, hidden, labels, weights, [rows.requires_grad_()], SIZE)
    assert sizes == [4, 4, 4, 4, 4, 3]


def test_only_what_is_trained_gets_a_gradient():
    hidden, labels, weights, rows = case()
    hidden.requires_grad_()
    chunked_nll(F.linear, hidden, labels, weights, [rows], SIZE)[0].backward()
    assert hidden.grad.abs().sum() > 0 and rows.grad is None
    with torch.no_grad():
        loss, _ = chunked_nll(F.linear, hidden, labels, weights, [rows], SIZE)
    assert not loss.requires_grad


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_divergence_from_distributions_equals_the_dense_one_with_its_gradients(monkeypatch, chunk):
    monkeypatch.setattr(chunked_loss, "AT_ONCE", chunk * SIZE)
    hidden, _, weights, rows = case()
    target = torch.randn(TOKENS, SIZE, generator=torch.Generator().manual_seed(1)).softmax(-1)
    target[0] = F.one_hot(torch.tensor(3), SIZE)  # 0 · log 0 is 0
    ours, theirs = ([x.clone().requires_grad_() for x in (hidden, rows)] for _ in range(2))
    found = chunked_kl(F.linear, ours[0], lambda part: target[part], weights, ours[1:], SIZE)
    logs = F.linear(*theirs).log_softmax(-1)
    kl = F.kl_div(logs, target, reduction="none").sum(-1)
    torch.testing.assert_close(found.loss, (weights * kl).sum())
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.target_entropy, torch.special.entr(target).sum(-1))
    torch.testing.assert_close(found.entropy, -(logs.exp() * logs).sum(-1))
    found.loss.backward()
    (weights * kl).sum().backward()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_divergence_of_no_places_is_zero():
    rows = torch.randn(SIZE, WIDTH, requires_grad=True)
    found = chunked_kl(F.linear, torch.zeros(0, WIDTH), lambda part: None, torch.zeros(0), [rows], SIZE)
    found.loss.backward()
    assert found.loss.item() == 0 and not rows.grad.any()
