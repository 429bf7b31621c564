"""Low-rank adapters beside frozen matrices (LoRA, arXiv 2106.09685), by the peft library."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from lavit.config import matching


@dataclass
class LoRAConfig:
    """Adapters of ``rank`` for the linear layers whose names one of the globs in ``names`` matches.

    What they add is scaled by ``alpha / rank``. ``dropout`` is of their input.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    names: list[str] = field(default_factory=lambda: ["*.q_proj", "*.v_proj"])


def add_lora(module: nn.Module, config: LoRAConfig, seed: int) -> None:
    """Put adapters into ``module``, in place, and freeze everything else in it. They add nothing at first.

    Raises:
        ValueError: a glob that matches no linear layer, or a rank below 1.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if config.rank < 1:
        raise ValueError(f"model.lora.rank is {config.rank}; it must be at least 1")
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    targets = {name for glob in config.names for name in matching(linear, glob, "model.lora.names", "linear layer")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                # A regular expression: a list would be taken as ends of names.
                target_modules="|".join(sorted(name.replace(".", r"\.") for name in targets)),
            ),
            module,
        )


def without_lora(module: nn.Module) -> nn.Module:
    """The module itself if it has no adapters, else a copy whose matrices hold what their adapters add."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(part, LoraLayer) for part in module.modules()):
        return module
    whole = copy.deepcopy(module)
    for name, part in list(whole.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            holder, _, last = name.rpartition(".")
            setattr(whole.get_submodule(holder), last, part.get_base_layer())
    return whole
