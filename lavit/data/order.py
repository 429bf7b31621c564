"""Which items a step takes, on any number of ranks: a function of the seed and the step alone, so nothing is saved."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where one micro-batch stands: what a stage needs to make it."""

    step: int
    micro: int
    rank: int
    world: int
    size: int


def items_at(place: Place, accumulate: int, total: int, seed: int) -> Tensor:
    """The item numbers (size,) int64 of a micro-batch: an endless run of seeded permutations of ``total`` items.

    The order is that of the global batch, whatever the number of ranks and accumulation steps.
    """
    batch = place.size * place.world * accumulate
    start = place.step * batch + (place.micro * place.world + place.rank) * place.size
    numbers = torch.arange(start, start + place.size)
    out = torch.empty_like(numbers)
    for epoch in (numbers // total).unique().tolist():
        here = numbers // total == epoch
        out[here] = _order(total, seed, epoch)[numbers[here] % total]
    return out


@functools.lru_cache(maxsize=8)
def _order(total: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(total, generator=generator_for(seed, epoch))


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by a few numbers (seed, step, …), independent for different numbers."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (number + 0x632BE59BD9B4E019)) * 0xD6E8FEB86659FD93) % 2**63
        state ^= state >> 32
    return torch.Generator().manual_seed(state)
