from __future__ import annotations

import pytest
import torch

from lavit.tokens import kept_index, left_align


def aligned_by_hand(values, keep):
    width = max(sum(row) for row in keep.tolist())
    out = torch.zeros(len(values), width, *values.shape[2:], dtype=values.dtype)
    real = torch.zeros(len(values), width, dtype=torch.bool)
    for i, row in enumerate(keep.tolist()):
        kept = [j for j, wanted in enumerate(row) if wanted]
        for n, j in enumerate(kept):
            out[i, n], real[i, n] = values[i, j], True
    return out, real


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_left_align_equals_a_loop(shape):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 9, *shape, generator=generator)
    keep = torch.rand(5, 9, generator=generator) < 0.5
    keep[1], keep[2] = True, False
    out, real = left_align(values, keep)
    expected, mask = aligned_by_hand(values, keep)
    assert torch.equal(out, expected) and torch.equal(real, mask)


def test_kept_index_is_in_raster_order():
    keep = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    index, real = kept_index(keep)
    assert index.dtype == torch.int64 and real.dtype == torch.bool
    assert index[real].tolist() == [1, 3, 4, 0]
    assert real.tolist() == [[True] * 3, [True, False, False]]


def test_nothing_kept_gives_width_zero():
    index, real = kept_index(torch.zeros(2, 4, dtype=torch.bool))
    assert index.shape == real.shape == (2, 0)


def test_gradient_reaches_the_kept_entries_alone():
    values = torch.randn(2, 3, 2, requires_grad=True)
    keep = torch.tensor([[False, True, True], [True, False, False]])
    left_align(values, keep)[0].sum().backward()
    assert torch.equal(values.grad, keep[..., None].expand(2, 3, 2).float())


def test_what_is_dropped_does_not_leak_through_the_padding():
    values = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    out, _ = left_align(values, torch.tensor([[True, False], [True, True]]))
    assert torch.equal(out, torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
