"""Retrieval: how often the right one is among the k most similar, chance, shuffles without a fixed point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def recall_at(similarity: Tensor, target: Tensor, k: int) -> float:
    """R@k in [0, 1]: the share of queries whose target is among the k candidates of highest similarity.

    similarity: (N, M) float, any scale; target: (N,) int64 in [0, M); k: 1 to M.
    Ties count as their expectation under a random order: where the target shares its similarity with others, the
    share of those equals that still fit in. A constant similarity therefore gives k / M, which is chance, not 1.
    Errors: ValueError for other shapes, targets or k out of range, similarities that are not a number.
    """
    if similarity.ndim != 2 or target.shape != similarity.shape[:1] or not similarity.numel():
        raise ValueError(
            f"similarity {tuple(similarity.shape)} and target {tuple(target.shape)}: give (N, M) and (N,), not empty"
        )
    candidates = similarity.shape[1]
    _check_k(k, candidates)
    if target.dtype != torch.int64 or int(target.min()) < 0 or int(target.max()) >= candidates:
        raise ValueError(f"targets of {target.dtype} in [{target.min()}, {target.max()}]: int64 in [0, {candidates})")
    if similarity.isnan().any():
        raise ValueError("a similarity is not a number: look for zero or overflowing features")
    own = similarity.gather(1, target.unsqueeze(1))
    better = (similarity > own).sum(1)
    equal = (similarity == own).sum(1)  # the target itself among them, so at least 1
    return float(((k - better) / equal).clamp(0, 1).double().mean())


def chance_recall(m: int, k: int) -> float:
    """R@k of a random order of m candidates: k / m. Errors: ValueError unless 1 <= k <= m."""
    _check_k(k, m)
    return k / m


def derangements(n: int, count: int, seed: int) -> Tensor:
    """`count` permutations of n things of which none stays in its place, each drawn uniformly (by rejection).

    Returns (count, n) int64 on the CPU. Errors: ValueError for n < 2 (one thing can only stay) or count < 0.
    """
    if n < 2 or count < 0:
        raise ValueError(f"{count} derangements of {n} things: at least two things, and no fewer than 0 derangements")
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(n)
    found = torch.empty(count, n, dtype=torch.int64)
    for row in range(count):
        order = torch.randperm(n, generator=generator)
        while (order == places).any():  # e tries on average, whatever n
            order = torch.randperm(n, generator=generator)
        found[row] = order
    return found


def nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """The index of the key of highest cosine similarity to each query; the first of equals.

    queries: (N, D), keys: (M, D), float, on one device. Returns (N,) int64 in [0, M).
    Errors: ValueError for other shapes, no keys, or values that are not finite.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(keys):
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)}: give (N, D) and (M, D), M > 0")
    if not (queries.isfinite().all() and keys.isfinite().all()):
        raise ValueError("queries or keys hold values that are not finite: look for where the features overflow")
    keys = F.normalize(keys.float(), dim=1)
    blocks = F.normalize(queries.float(), dim=1).split(4096)  # the whole N x M table need not fit in memory
    return torch.cat([(block @ keys.T).argmax(1) for block in blocks])


def _check_k(k: int, candidates: int) -> None:
    if not 1 <= k <= candidates:
        raise ValueError(f"k is {k} among {candidates} candidates: choose 1 to {candidates}")
