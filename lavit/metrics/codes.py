"""How much of a codebook is in use."""

from __future__ import annotations

import torch
from torch import Tensor


def code_usage(codes: Tensor, size: int) -> dict[str, float | int]:
    """Usage of a codebook of `size` codes by n tokens.

    codes: (n,) int64 in [0, size). Returns used (distinct codes), utilization (used / size, in [0, 1]), perplexity
    (1 to used) and n. Neither can exceed n: print n beside them.
    Errors: ValueError for no codes, another shape or dtype, codes out of range.
    """
    if codes.ndim != 1 or codes.dtype != torch.int64 or not len(codes):
        raise ValueError(f"codes are {tuple(codes.shape)} {codes.dtype}: give (n,) int64, n > 0")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= size:
        raise ValueError(f"codes in [{low}, {high}] of a codebook of {size}: give codes in [0, {size})")
    counts = torch.bincount(codes, minlength=size)
    used = int((counts > 0).sum())
    return {"used": used, "utilization": used / size, "perplexity": perplexity(counts), "n": len(codes)}


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of the distribution that the counts give: K for K equal ones, 1 for a single one.

    counts: (K,) int or float, >= 0, not all 0. Errors: ValueError otherwise.
    """
    counts = counts.double()
    if counts.ndim != 1 or not counts.isfinite().all() or (counts < 0).any() or not counts.sum() > 0:
        raise ValueError(f"counts of shape {tuple(counts.shape)}: give (K,), finite, none negative, not all 0")
    share = counts / counts.sum()
    return float(torch.special.entr(share).sum().exp())
