from __future__ import annotations

import pytest
import torch

from lavit.data.order import Place, evenly, generator_for, generators_at, items_at, seed_for, shuffled

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


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_what_is_drawn_for_a_picture_depends_on_neither_ranks_nor_accumulation(world, accumulate):
    def drawn(world: int, accumulate: int, step: int = 3, seed: int = 5) -> list[float]:
        size = BATCH // (world * accumulate)
        places = [Place(step, micro, rank, world, size) for micro in range(accumulate) for rank in range(world)]
        return [float(torch.rand(1, generator=one)) for place in places for one in generators_at(place, seed)]

    assert drawn(world, accumulate) == drawn(1, 1) and len(set(drawn(1, 1))) == BATCH
    assert not set(drawn(1, 1)) & set(drawn(1, 1, step=4)) and not set(drawn(1, 1)) & set(drawn(1, 1, seed=6))


def test_a_seed_is_that_of_its_generator():
    assert seed_for(1, 2) != seed_for(2, 1) and 0 <= seed_for(-3) < 2**63
    assert generator_for(1, 2).initial_seed() == seed_for(1, 2)


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


@pytest.mark.parametrize("total", [1, 2, 3, 5, 64, 65, 1000])
def test_many_items_are_shuffled_without_a_list(total):
    numbers = torch.arange(total)
    orders = [shuffled(numbers, total, 0, epoch) for epoch in range(20)]
    assert all(order.sort().values.equal(numbers) for order in orders)
    assert shuffled(numbers, total, 0, 3).equal(orders[3]), "the seed decides"
    if total == 1000:
        places = torch.stack(orders).float()
        assert (places.mean(0) - 499.5).abs().mean() < 80, "every item comes everywhere: 64 by chance"
        neighbours = (places[:, 1:] - places[:, :-1]).abs().mean()
        assert 313 < neighbours < 353, "a third of the range by chance"


def test_an_order_of_many_items_is_the_same_for_all_ranks(monkeypatch):
    monkeypatch.setattr("lavit.data.order.LISTED", 10)
    whole = items_at(Place(3, 0, 0, 1, 8), 1, 30, 0)
    parts = [items_at(Place(3, 0, rank, 2, 4), 1, 30, 0) for rank in range(2)]
    assert torch.cat(parts).equal(whole)
    seen = torch.cat([items_at(Place(step, 0, 0, 1, 6), 1, 30, 0) for step in range(5)])
    assert seen.sort().values.tolist() == list(range(30))


def test_seeds_of_numbers_are_those_of_generators():
    numbers = [(0,), (1,), (0, 0), (0, 1), (1, 0), (3, 2, 1)]
    seeds = [seed_for(*some) for some in numbers]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert [generator_for(*some).initial_seed() for some in numbers] == seeds


def test_evenly_takes_even_steps():
    assert evenly(list(range(10)), 4) == evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 4) == [1, 2] and evenly([], 4) == evenly([1], 0) == []
