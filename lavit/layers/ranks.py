"""What the ranks of a training know together; on one rank everything is itself."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor


def world_size() -> int:
    """Ranks that train together, 1 where nothing was started."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks; gradients flow back to every rank."""
    return values if world_size() == 1 else dist.nn.functional.all_reduce(values)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean over all ranks, float32 and without gradient."""
    value = value.detach().float().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of every rank, in the order of ranks; n may differ between ranks. Without gradient."""
    if world_size() == 1:
        return rows.detach()
    parts: list[Tensor | None] = [None] * world_size()
    dist.all_gather_object(parts, rows.detach().cpu())
    return torch.cat(parts).to(rows.device)
