"""Next-token loss that never holds all logits: at 8,192 tokens and 65,536 ids they and their gradients take 6 GiB.

The loss is a sum with known weights, so a chunk's gradient is known as soon as its logits are: it is taken in the
forward pass, the logits are dropped, and the backward pass only scales what was found. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 2**25  # logits of a chunk: 128 MiB in float32


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
    return _ChunkedNLL.apply(logits_of, hidden, labels, weights, max(1, AT_ONCE // size), z_loss, *parameters)


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_of: Callable[..., Tensor],
        hidden: Tensor,
        labels: Tensor,
        weights: Tensor,
        chunk: int,
        z_loss: float,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        asked = [needed for i, needed in enumerate(ctx.needs_input_grad) if i == 1 or i > 5]
        found = [torch.zeros_like(x) if need else None for x, need in zip((hidden, *parameters), asked, strict=True)]
        wanted = [i for i, need in enumerate(asked) if need]
        loss = weights.new_zeros(())
        nll = torch.empty_like(weights)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(bool(wanted)):
                inputs = [x.detach().requires_grad_(n) for x, n in zip((hidden[part], *parameters), asked, strict=True)]
                raw = logits_of(*inputs)
            logits = raw.detach().float()
            total = logits.logsumexp(-1)
            place, weight = labels[part, None], weights[part]
            nll[part] = total - logits.gather(-1, place)[:, 0]
            loss += (weight * (nll[part] + z_loss * total.square())).sum()
            if wanted:
                # d loss / d logits = weight · (softmax · (1 + 2 z log Z) − one-hot)
                scale = weight * (1 + 2 * z_loss * total)
                slope = logits.sub_(total[:, None]).exp_().mul_(scale[:, None])
                slope.scatter_add_(-1, place, -weight[:, None])
                gradients = torch.autograd.grad(raw, [inputs[i] for i in wanted], slope.to(raw.dtype))
                for i, gradient in zip(wanted, gradients, strict=True):
                    (found[0][part] if i == 0 else found[i]).add_(gradient)
        ctx.save_for_backward(*(found[i] for i in wanted))
        ctx.asked = asked
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple:
        saved = iter(ctx.saved_tensors)
        first, *rest = (next(saved) * slope if need else None for need in ctx.asked)
        return None, first, None, None, None, None, *rest
