from __future__ import annotations

import math

import pytest
import torch

from lavit.layers.attention import attention, require_xformers, soft_masked_attention


def written_out(query, key, value, mask=None):
    """softmax(q k^T / sqrt d) v by loops over batch, head and query; a query without keys gives zeros."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1])
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for n in range(query.shape[2]):
                seen = [m for m in range(key.shape[2]) if mask is None or bool(mask[b, h, n, m])]
                if seen:
                    scores = torch.stack([query[b, h, n] @ key[b, h, m] / math.sqrt(query.shape[-1]) for m in seen])
                    weight = scores.exp() / scores.exp().sum()
                    out[b, h, n] = sum(w * value[b, h, m] for w, m in zip(weight, seen, strict=True))
    return out


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    make = lambda n: torch.randn(2, 3, n, 4, generator=generator)  # noqa: E731
    return make(5), make(6), make(6)


@pytest.fixture
def mask():
    mask = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, :, 2] = False
    mask[1, :, 3] = True
    return mask


def test_equals_written_out_softmax(qkv, mask):
    assert attention(*qkv).shape == (2, 3, 5, 4)
    torch.testing.assert_close(attention(*qkv), written_out(*qkv), atol=1e-6, rtol=0)
    expected = written_out(*qkv, mask.expand(2, 3, 5, 6))
    torch.testing.assert_close(attention(*qkv, mask), expected, atol=1e-6, rtol=0)


def test_row_that_attends_nothing_is_zero_with_finite_gradients(qkv, mask):
    tensors = [t.requires_grad_() for t in qkv]
    out = attention(*tensors, mask)
    assert torch.equal(out[0, :, 2], torch.zeros(3, 4))
    out.square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in tensors)
    assert torch.equal(tensors[0].grad[0, :, 2], torch.zeros(3, 4))


def test_no_keys_at_all_gives_zeros(qkv):
    query = qkv[0].requires_grad_()
    empty = torch.zeros(2, 3, 0, 4)
    out = attention(query, empty, empty, torch.ones(2, 1, 5, 0, dtype=torch.bool))
    assert torch.equal(out, torch.zeros(2, 3, 5, 4))
    out.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_masked_keys_have_no_influence(qkv, mask):
    query, key, value = qkv
    hidden = ~mask.any(2).expand(2, 3, 6)
    hidden[..., 0] = True
    mask = mask & ~hidden[:, :1, None]
    changed = attention(query, key + 50 * hidden[..., None], value + 50 * hidden[..., None], mask)
    torch.testing.assert_close(changed, attention(query, key, value, mask), atol=0, rtol=0)


def test_unknown_backend_and_xformers_without_a_gpu(qkv):
    with pytest.raises(ValueError, match="attention backend 'flash' is unknown; choose one of sdpa, xformers"):
        attention(*qkv, backend="flash")
    with pytest.raises(ValueError, match="'xformers' needs a GPU.*set attention: sdpa"):
        attention(*qkv, backend="xformers")
    with pytest.raises(ValueError, match="needs a GPU"):
        require_xformers(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_xformers_equals_sdpa(qkv, mask):
    on_gpu = [t.cuda() for t in (*qkv, mask)]
    with torch.profiler.profile() as trace:
        out = attention(*on_gpu, backend="xformers")
    kernels = {event.name for event in trace.events()}
    assert any("xformers" in name or "fmha" in name for name in kernels), kernels
    torch.testing.assert_close(out.cpu(), attention(*qkv, mask), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------ soft masks


def test_soft_mask_equals_its_formula(qkv, mask):
    query, key, value = qkv
    factor = mask.float() * 0.7
    out, eps = soft_masked_attention(query, key, value, factor), 1e-6
    for b in range(2):
        for h in range(3):
            for n in range(5):
                scores = torch.stack([query[b, h, n] @ key[b, h, m] / 2 for m in range(6)])
                weight = (scores - scores.max()).exp() * factor[b, 0, n]
                weight = (weight + eps / 6) / (weight.sum() + eps)
                torch.testing.assert_close(out[b, h, n], weight @ value[b, h], atol=1e-6, rtol=0)
    assert torch.allclose(out[0, :, 2], value[0].mean(1), atol=1e-6), "nothing to attend to: all keys alike"


def test_soft_mask_carries_gradients_and_nears_the_strict_one(qkv, mask):
    factor = mask.float().requires_grad_()
    out = soft_masked_attention(*qkv, factor)
    seen = mask.any(-1, keepdim=True)
    torch.testing.assert_close(out * seen, attention(*qkv, mask), atol=1e-4, rtol=0)
    out.square().sum().backward()
    assert factor.grad.isfinite().all() and (factor.grad != 0).any()
