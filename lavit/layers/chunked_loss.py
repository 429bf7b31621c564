"""Losses over a vocabulary that never hold all logits: at 8,192 tokens and 65,536 ids these take 6 GiB with gradients.

Targets are ids, or distributions over all ids. A loss is a sum with known weights, so a chunk's gradient is known as
soon as its logits are: it is taken in the forward pass, the logits are dropped, and the backward pass only scales what
was found. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**25  # logits of a chunk: 128 MiB in float32
Distributions = Callable[[slice], Tensor]


class Divergence(NamedTuple):
    """Of N places: loss (), Σ weights · KL(target ‖ prediction), with gradient; without any kl (N,), and the entropies
    (N,) of the target and of the prediction, float32, in nats."""

    loss: Tensor
    kl: Tensor
    target_entropy: Tensor
    entropy: Tensor


def chunked_kl(
    logits_of: Callable[..., Tensor],
    hidden: Tensor,
    targets: Distributions,
    weights: Tensor,
    parameters: Sequence[Tensor],
    size: int,
) -> Divergence:
    """The weighted divergence of what a head predicts from given distributions.

    Args:
        logits_of: ``logits_of(hidden, *parameters)`` gives (n, size) logits.
        hidden: (N, D) states.
        targets: (n, size) float32 probabilities of a slice of the places; no gradient flows to them.
        weights: (N,) float32 of the places in the loss.
        parameters: what the head is made of.
        size: number of ids.
    """
    rows = max(1, AT_ONCE // size)
    loss, (cross, own, entropy) = _ChunkedNLL.apply(logits_of, hidden, targets, weights, rows, 0.0, *parameters)
    return Divergence(loss - (weights * own).sum(), cross - own, own, entropy)


def chunked_nll(
    logits_of: Callable[..., Tensor],
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    parameters: Sequence[Tensor],
    size: int,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The weighted loss of labels under a head, and every label's negative log-likelihood.

    Args:
        logits_of: ``logits_of(hidden, *parameters)`` gives (n, size) logits.
        hidden: (N, D) states.
        labels: (N,) int64 in [0, size).
        weights: (N,) float32 of the labels in the loss; no gradient flows to them.
        parameters: what the head is made of.
        size: number of ids.
        z_loss: weighs the square of the logarithm of the softmax's denominator (PaLM, arXiv 2204.02311, section 5).

    Returns:
        loss () float32, Σ weights · (nll + z_loss · log²Z), and nll (N,) float32 without gradient.
    """
    rows = max(1, AT_ONCE // size)
    loss, (nll,) = _ChunkedNLL.apply(logits_of, hidden, labels, weights, rows, z_loss, *parameters)
    return loss, nll


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_of: Callable[..., Tensor],
        hidden: Tensor,
        targets: Tensor | Distributions,
        weights: Tensor,
        chunk: int,
        z_loss: float,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        asked = [needed for i, needed in enumerate(ctx.needs_input_grad) if i == 1 or i > 5]
        found = [torch.zeros_like(x) if need else None for x, need in zip((hidden, *parameters), asked, strict=True)]
        wanted = [i for i, need in enumerate(asked) if need]
        loss = weights.new_zeros(())
        figures = weights.new_empty(3 if callable(targets) else 1, len(weights))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(bool(wanted)):
                inputs = [x.detach().requires_grad_(n) for x, n in zip((hidden[part], *parameters), asked, strict=True)]
                raw = logits_of(*inputs)
            logits = raw.detach().float()
            total = logits.logsumexp(-1)
            weight, target = weights[part], targets(part) if callable(targets) else targets[part, None]
            if callable(targets):
                figures[1, part] = -torch.xlogy(target, target).sum(-1)
                figures[2, part] = total - (logits.softmax(-1) * logits).sum(-1)
                figures[0, part] = total - (target * logits).sum(-1)
            else:
                figures[0, part] = total - logits.gather(-1, target)[:, 0]
            loss += (weight * (figures[0, part] + z_loss * total.square())).sum()
            if wanted:
                # d loss / d logits = weight · (softmax · (1 + 2 z log Z) − target), an id's target being one-hot
                scale = weight * (1 + 2 * z_loss * total)
                slope = logits.sub_(total[:, None]).exp_().mul_(scale[:, None])
                if callable(targets):
                    slope.sub_(weight[:, None] * target)
                else:
                    slope.scatter_add_(-1, target, -weight[:, None])
                gradients = torch.autograd.grad(raw, [inputs[i] for i in wanted], slope.to(raw.dtype))
                for i, gradient in zip(wanted, gradients, strict=True):
                    (found[0][part] if i == 0 else found[i]).add_(gradient)
        ctx.save_for_backward(*(found[i] for i in wanted))
        ctx.asked = asked
        ctx.mark_non_differentiable(figures)
        return loss, figures

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple:
        saved = iter(ctx.saved_tensors)
        first, *rest = (next(saved) * slope if need else None for need in ctx.asked)
        return None, first, None, None, None, None, *rest
