from __future__ import annotations

from typing import NamedTuple

import torch

from lavit.tokens import Rows, to_device


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


def test_to_device_keeps_the_structure():
    class Batch(NamedTuple):
        x: torch.Tensor
        more: dict
        none: None

    made = to_device(Batch(torch.ones(2), {"a": (torch.zeros(1), 3)}, None), torch.device("meta"))
    assert isinstance(made, Batch) and made.x.device.type == "meta" and made.none is None
    assert made.more["a"][1] == 3
