"""Few-shot answers and token copies: baselines without a language model, and means with their standard errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of at least one value and its standard error, 0 of a single one.

    Errors: ValueError for none.
    """
    if not values:
        raise ValueError("a mean of no values: measure at least one episode")
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std() / len(x) ** 0.5) if len(x) > 1 else 0.0


def overlap(queries: Tensor, examples: Tensor) -> Tensor:
    """(Q, E) float32: how many different words of each query (Q, W) int64 stand in each example (E, W) int64."""
    same = queries[:, None, :, None] == examples[None, :, None, :]
    first = (queries[:, :, None] == queries[:, None, :]).int().argmax(-1) == torch.arange(queries.shape[1])
    return (same.any(-1) & first[:, None]).sum(-1).float()


def similarity(queries: Tensor, examples: Tensor, table: Tensor) -> Tensor:
    """(Q, E) float32 cosine of the mean vectors of words; table (K, D) float has those of words in [0, K)."""
    means = [F.normalize(table[words].float().mean(1), dim=-1) for words in (queries, examples)]
    return means[0] @ means[1].T


def nearest_example(scores: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """(Q,) float64 in [0, 1]: how often the label of the example with the highest score is right.

    scores: (Q, E) float; labels: (E,) int64 of the examples; target: (Q,) int64.
    Where several examples have the highest score one of them is taken by lot: what counts is the share that is right.
    """
    best = scores == scores.max(1, keepdim=True).values
    return (best & (labels[None] == target[:, None])).sum(1).double() / best.sum(1)


def majority_copy(contexts: Tensor) -> Tensor:
    """(n,) int64 the commonest code of every place of contexts (C, n) int64; of equals the one that stands last."""
    same = (contexts[:, None] == contexts[None]).sum(1)  # (C, n): how often the code of a context stands there at all
    last = len(contexts) - 1 - same.flip(0).argmax(0)
    return contexts.gather(0, last[None])[0]


def accuracy_by_layer(made: Tensor, truth: Tensor, counts: list[int]) -> list[float]:
    """The share of tokens (P, n) int64 that are right in every layer; ``counts`` tokens each.

    Errors: ValueError where the layers have other tokens in all than there are.
    """
    if sum(counts) != made.shape[1] or made.shape != truth.shape:
        raise ValueError(f"layers of {counts} tokens for {tuple(made.shape)} and {tuple(truth.shape)} tokens")
    return [float(part.double().mean()) for part in (made == truth).split(counts, dim=1)]
