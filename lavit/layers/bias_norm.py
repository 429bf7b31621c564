"""Biases and gains that a frozen language model's layers learn (LLaMA-Adapter V2, arXiv 2304.15010, section 4.1).

They are parameters of their own, which start where they change nothing: what was there before is never touched, and
without them the model is bit for bit what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

BIAS, GAIN = "delta_bias", "delta_gain"


def add_bias_norm(module: nn.Module) -> None:
    """Give every linear layer of ``module`` a bias of zero and every norm a gain of one, in place; all else is frozen.

    A linear layer then computes W x + bias, a norm (1 + gain) times what it did.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.register_parameter(BIAS, nn.Parameter(part.weight.new_zeros(part.out_features)))
            part.register_forward_hook(_add)
        elif part.__class__.__name__.endswith("RMSNorm"):  # transformers has one a family
            part.register_parameter(GAIN, nn.Parameter(part.weight.new_zeros(part.weight.shape)))
            part.register_forward_hook(_scale)


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


def original_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module without what was added to it."""
    return {name: value for name, value in module.state_dict().items() if not name.endswith((BIAS, GAIN))}


def _add(module: nn.Linear, _: Any, out: Tensor) -> Tensor:
    return out if hasattr(module, "delta_off") else out + module.delta_bias.to(out.dtype)


def _scale(module: nn.Module, _: Any, out: Tensor) -> Tensor:
    return out if hasattr(module, "delta_off") else out * (1 + module.delta_gain).to(out.dtype)
