from __future__ import annotations

import torch

from lavit.tokens import kept_index


def test_kept_index_is_in_raster_order():
    keep = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    index, real = kept_index(keep)
    assert index.dtype == torch.int64 and real.dtype == torch.bool
    assert index[real].tolist() == [1, 3, 4, 0]
    assert real.tolist() == [[True] * 3, [True, False, False]]


def test_nothing_kept_gives_width_zero():
    index, real = kept_index(torch.zeros(2, 4, dtype=torch.bool))
    assert index.shape == real.shape == (2, 0)
