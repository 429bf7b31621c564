"""Retrieval: how often the right one is among the k most similar, chance, shuffles without a fixed point."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

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
    _check(similarity, target)
    _check_k(k, similarity.shape[1])
    own = similarity.gather(1, target.unsqueeze(1))
    better = (similarity > own).sum(1)
    equal = (similarity == own).sum(1)  # the target itself among them, so at least 1
    return float(((k - better) / equal).clamp(0, 1).double().mean())


def chance_recall(m: int, k: int) -> float:
    """R@k of a random order of m candidates: k / m. Errors: ValueError unless 1 <= k <= m."""
    _check_k(k, m)
    return k / m


def nearer_rate(similarity: Tensor, target: Tensor) -> float:
    """The share in [0, 1] of (query, other candidate) pairs of which the query is nearer to its target; chance is 1/2.

    similarity: (N, M) float, any scale, M > 1; target: (N,) int64 in [0, M). Equal similarities count half.
    Errors: ValueError as `recall_at`, and for a single candidate.
    """
    _check(similarity, target)
    if similarity.shape[1] < 2:
        raise ValueError("one candidate alone: there is no other one to be nearer than")
    own = similarity.gather(1, target.unsqueeze(1))
    beaten = (similarity < own).sum(1) + ((similarity == own).sum(1) - 1).double() / 2
    return float(beaten.mean()) / (similarity.shape[1] - 1)


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


def nearest_texts(queries: Sequence[str], keys: Sequence[str]) -> list[int]:
    """The index of the key most like each query: the highest cosine of their words, weighed by log(1 + keys / keys with
    the word); the first of equals, and the first of all where no word is shared. Case and punctuation do not count.

    Errors: ValueError for no keys.
    """
    if not keys:
        raise ValueError("no texts to search: give at least one")
    words = [set(re.findall(r"\w+", key.lower())) for key in keys]
    seen = Counter(word for its in words for word in its)
    weight = {word: math.log1p(len(keys) / count) ** 2 for word, count in seen.items()}
    size = [math.sqrt(sum(sorted(weight[word] for word in its))) for its in words]
    places = defaultdict(list)
    for place, its in enumerate(words):
        for word in its:
            places[word].append(place)
    found = []
    for query in queries:
        scores: dict[int, float] = {0: 0.0}
        for word in sorted(set(re.findall(r"\w+", query.lower())) & seen.keys()):  # sums in one order, run after run
            for place in places[word]:
                scores[place] = scores.get(place, 0.0) + weight[word] / size[place]
        found.append(min(scores, key=lambda place: (-scores[place], place)))
    return found


def _check(similarity: Tensor, target: Tensor) -> None:
    if similarity.ndim != 2 or target.shape != similarity.shape[:1] or not similarity.numel():
        raise ValueError(
            f"similarity {tuple(similarity.shape)} and target {tuple(target.shape)}: give (N, M) and (N,), not empty"
        )
    candidates = similarity.shape[1]
    if target.dtype != torch.int64 or int(target.min()) < 0 or int(target.max()) >= candidates:
        raise ValueError(f"targets of {target.dtype} in [{target.min()}, {target.max()}]: int64 in [0, {candidates})")
    if similarity.isnan().any():
        raise ValueError("a similarity is not a number: look for zero or overflowing features")


def _check_k(k: int, candidates: int) -> None:
    if not 1 <= k <= candidates:
        raise ValueError(f"k is {k} among {candidates} candidates: choose 1 to {candidates}")
