"""Which items a step takes, on any number of ranks: a function of the seed and the step alone, so nothing is saved.

And which few stand for many.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
LISTED = 2**24  # items of which a permutation is kept as a list, 128 MiB of it; every worker has its own
ROUNDS = 8


def evenly(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items at even steps from the first one, or all: a rule that cannot prefer the good ones."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


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
        inside = numbers[here] % total
        out[here] = _order(total, seed, epoch)[inside] if total <= LISTED else shuffled(inside, total, seed, epoch)
    return out


def generators_at(place: Place, seed: int) -> list[torch.Generator]:
    """A generator for each item of a micro-batch: of the seed, the step and the item's place in the global batch.

    What they draw does not depend on the number of ranks and accumulation steps, and no rank draws for others.
    """
    start = (place.micro * place.world + place.rank) * place.size
    return [generator_for(seed, place.step, number) for number in range(start, start + place.size)]


@functools.lru_cache(maxsize=8)
def _order(total: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(total, generator=generator_for(seed, epoch))


def shuffled(numbers: Tensor, total: int, *seed: int) -> Tensor:
    """Where a seeded permutation of [0, total) takes ``numbers`` (n,) int64, without a list of it.

    A Feistel network permutes the next power of four, and what leaves the range goes through it again (cycle walking:
    Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = max(1, ((total - 1).bit_length() + 1) // 2)
    keys = torch.randint(2**31, (ROUNDS,), generator=generator_for(*seed)).tolist()

    def once(x: Tensor) -> Tensor:
        left, right = x >> half, x & (2**half - 1)
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B1) & (2**62 - 1)
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B) & (2**62 - 1)
            left, right = right, left ^ ((mixed ^ (mixed >> 17)) & (2**half - 1))
        return left << half | right

    out = once(numbers)
    while (outside := out >= total).any():
        out = torch.where(outside, once(out), out)
    return out


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by a few numbers (seed, step, …), independent for different numbers."""
    return torch.Generator().manual_seed(seed_for(*numbers))


def seed_for(*numbers: int) -> int:
    """A seed in [0, 2^63) of a few numbers, as of an experiment's seed and an item's number."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (number + 0x632BE59BD9B4E019)) * 0xD6E8FEB86659FD93) % 2**63
        state ^= state >> 32
    return state
