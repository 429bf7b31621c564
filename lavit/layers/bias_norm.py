"""Biases and gains that a frozen language model's layers learn (LLaMA-Adapter V2, arXiv 2304.15010, section 4.1).

They are parameters of their own, which start where they change nothing: what was there before is never touched, and
without them the model is bit for bit what it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

BIAS, GAIN = "delta_bias", "delta_gain"


class BiasedLinear(nn.Linear):
    """W x + bias, the bias (D,) learned beside a frozen matrix, of its dtype."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if hasattr(self, "delta_off") else out + self.delta_bias.to(out.dtype)


@functools.cache
def gained(norm: type[nn.Module]) -> type[nn.Module]:
    """The class of a norm with a gain (D,) learned beside it, of its weight's dtype: 1 + gain times what it did."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        out = norm.forward(self, x)
        return out if hasattr(self, "delta_off") else out * (1 + self.delta_gain).to(out.dtype)

    return type(f"Gained{norm.__name__}", (norm,), {"forward": forward})


def add_bias_norm(module: nn.Module) -> None:
    """Give the linear layers of ``module`` a bias of zero and its norms a gain of one, in place; freeze all else."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for part in module.modules():
        # Another class of the same object: its weights, its place and its name stay.
        if type(part) is nn.Linear:
            part.register_parameter(BIAS, nn.Parameter(part.weight.new_zeros(part.out_features)))
            part.__class__ = BiasedLinear
        elif type(part).__name__.endswith("RMSNorm"):  # transformers has one a family
            part.register_parameter(GAIN, nn.Parameter(part.weight.new_zeros(part.weight.shape)))
            part.__class__ = gained(type(part))


@contextmanager
def without_bias_norm(module: nn.Module) -> Iterator[nn.Module]:
    """The module as it was before :func:`add_bias_norm`, for the time of the block."""
    changed = [part for part in module.modules() if part._parameters.keys() & {BIAS, GAIN}]
    for part in changed:
        part.delta_off = True
    try:
        yield module
    finally:
        for part in changed:
            del part.delta_off
