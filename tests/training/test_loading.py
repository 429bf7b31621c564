from __future__ import annotations

import os

import pytest
import torch

from lavit.data.order import Place
from lavit.tokens import PackedBatch
from lavit.training.loading import micro_batches

PLACES = [Place(step, micro, 0, 1, 2) for step in range(5) for micro in range(2)]


def packed(place: Place) -> PackedBatch:
    ids = torch.full((1, 2), 10 * place.step + place.micro)
    return PackedBatch(ids, ids, ids, ids, {}, torch.tensor(os.getpid()))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_places(workers):
    made = list(micro_batches(packed, PLACES, workers, pin=False))
    assert [int(batch.ids[0, 0]) for batch in made] == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert all(isinstance(batch, PackedBatch) for batch in made)
    makers = {int(batch.total) for batch in made}
    assert makers == {os.getpid()} if workers == 0 else len(makers) == 2 and os.getpid() not in makers


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_cannot_make_is_said_in_its_own_words(workers):
    def broken(place: Place) -> int:
        if place.step == 2:
            raise ValueError("shard train-00003.tar is cut; fetch it again")
        return place.step

    made = micro_batches(broken, PLACES, workers, pin=False)
    assert [next(made) for _ in range(4)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"^shard train-00003.tar is cut; fetch it again$"):
        next(made)


def test_loading_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(micro_batches(lambda place: place.step, PLACES, 0, pin=False))
    assert torch.equal(torch.get_rng_state(), before)
