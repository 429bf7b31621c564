from __future__ import annotations

import torch

from lavit.tokens import Rows


def test_rows_are_in_raster_order():
    keep = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    rows = Rows.of(keep)
    assert rows.source.tolist() == [1, 3, 4, 5] and rows.place.tolist() == [0, 1, 2, 3]
    assert rows.real.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_rows_take_pad_and_pack():
    keep = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
    rows, x = Rows.of(keep), torch.arange(12.0).view(2, 3, 2).requires_grad_()
    taken = rows.take(x)
    assert taken.tolist() == [[0, 1], [4, 5], [8, 9]]
    padded = rows.pad(taken)
    assert padded.tolist() == [[[0, 1], [4, 5]], [[8, 9], [0, 0]]]
    assert torch.equal(rows.pack(padded), taken)
    padded.sum().backward()
    assert torch.equal(x.grad, keep[..., None].expand(2, 3, 2).float())


def test_no_rows_at_all():
    rows = Rows.of(torch.zeros(2, 4, dtype=torch.bool))
    assert rows.real.shape == (2, 0) and rows.pad(rows.take(torch.ones(2, 4, 3))).shape == (2, 0, 3)
