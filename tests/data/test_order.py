from __future__ import annotations

import pytest
import torch

from lavit.data.order import Place, generator_for, items_at

BATCH, ITEMS = 4, 10


def order(steps: int, world: int, accumulate: int, total: int = ITEMS, batch: int = BATCH, seed: int = 3) -> list[int]:
    """The items of all steps in the order of the global batch, gathered from every rank and micro-batch."""
    size = batch // (world * accumulate)
    return [
        number
        for step in range(steps)
        for micro in range(accumulate)
        for rank in range(world)
        for number in items_at(Place(step, micro, rank, world, size), accumulate, total, seed).tolist()
    ]


def test_every_epoch_holds_every_item_once():
    numbers = order(steps=15, world=1, accumulate=1)
    epochs = [numbers[i : i + ITEMS] for i in range(0, 60, ITEMS)]
    assert all(sorted(epoch) == list(range(ITEMS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "each epoch has an order of its own"
    assert numbers != order(steps=15, world=1, accumulate=1, seed=4)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_global_order_depends_on_neither_ranks_nor_accumulation(world, accumulate):
    assert order(9, world, accumulate) == order(9, 1, 1)


def test_a_batch_may_span_epochs_and_be_larger_than_one():
    assert sorted(order(steps=1, world=1, accumulate=1, total=2, batch=6)) == [0, 0, 0, 1, 1, 1]
    place = Place(2, 0, 0, 1, BATCH)  # items 8 to 11 of epochs of ten
    assert items_at(place, 1, ITEMS, 3).dtype == torch.int64 and items_at(place, 1, ITEMS, 3).shape == (BATCH,)


def test_generators_differ_for_different_numbers_and_agree_for_the_same():
    drawn = lambda *numbers: torch.rand(4, generator=generator_for(*numbers)).tolist()  # noqa: E731
    assert drawn(0, 1) == drawn(0, 1)
    places = [(seed, step, micro) for seed in range(4) for step in range(8) for micro in range(8)]
    places += [(seed, epoch) for seed in range(4) for epoch in range(8)]
    states = {generator_for(*numbers).initial_seed() for numbers in places}
    assert len(states) == len(places), "(1, 2) and (2, 1), or (0, 1) and (0, 1, 0), are different streams"
