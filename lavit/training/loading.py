"""Micro-batches in the order of the training, made here or ahead of time by worker processes."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from lavit.data.order import Place


class _Failed(NamedTuple):
    """What a worker could not make; raised where it is wanted, with its own words and, as its cause, where it was."""

    error: Exception
    where: str


class _Batches(Dataset):
    def __init__(self, batch_at: Callable[[Place], Any], places: list[Place]):
        self.batch_at, self.places = batch_at, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.batch_at(self.places[number])
        except Exception as error:
            return _Failed(error, traceback.format_exc())


def _leave_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the workers too, but it is their rank that stops: it still needs batches till then."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def micro_batches(batch_at: Callable[[Place], Any], places: list[Place], workers: int, pin: bool) -> Iterator[Any]:
    """``batch_at`` of every place, in order, whatever the number of workers.

    Args:
        batch_at: makes a micro-batch; depends on nothing but the place, and leaves CUDA alone where there are workers.
        places: in the order of the training.
        workers: processes that work ahead; 0 makes each batch when it is asked for.
        pin: put tensors into page-locked memory, from where they reach a GPU sooner.

    Raises:
        Exception: what ``batch_at`` raised, at the place it was for.
    """
    loader = DataLoader(
        _Batches(batch_at, places),
        batch_size=None,
        num_workers=workers,
        collate_fn=lambda batch: batch,
        worker_init_fn=_leave_signals,
        pin_memory=pin,
        # Without one of its own it would draw from the global generator, and resuming would go on from another state.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, _Failed):
            raise batch.error from RuntimeError(batch.where)
        yield batch
