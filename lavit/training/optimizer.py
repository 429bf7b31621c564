"""AdamW, with Muon for the matrices inside of transformers where a config asks for it.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
orthogonal matrix, so that all of its directions are learned at one speed. A merger and a decoder that AdamW leaves
undertrained after a few hundred steps are far better with it (docs/results.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lavit.config import matching


@dataclass
class MuonConfig:
    """Muon for the matrices that the globs in ``names`` match; vectors among them stay with AdamW.

    ``lr`` is in units of a spectral norm a step, and has nothing to do with AdamW's.
    """

    names: list[str] = field(default_factory=list)
    lr: float = 0.02
    momentum: float = 0.95
    iterations: int = 4


@dataclass
class OptimizerConfig:
    """AdamW with a warm-up and a cosine down to ``final`` × lr.

    ``scale`` maps name globs to factors of the learning rate. ``trained`` lists name globs of the parameters that move,
    by default all; of these ``frozen`` names those that stay all the same.
    ``muon`` hands matrices to another optimizer; the schedule and the factors hold for both.
    """

    lr: float = 6e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    warmup: int = 20
    final: float = 0.05
    scale: dict[str, float] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    muon: MuonConfig | None = None


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of the trainable parameters: by optimizer and learning-rate factor, without decay for vectors and biases.

    Freezes what ``config.trained`` leaves out and what ``config.frozen`` names.

    Raises:
        ValueError: a glob that matches nothing, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    for name in named.keys() - trained_names(model, config):
        named[name].requires_grad_(False)
    factor = dict.fromkeys(named, 1.0)
    for glob, value in config.scale.items():
        factor.update(dict.fromkeys(matching(list(named), glob, "optimizer.scale"), value))
    muon: set[str] = set()
    for glob in config.muon.names if config.muon else ():
        muon.update(name for name in matching(list(named), glob, "optimizer.muon.names") if named[name].dim() == 2)
    kinds: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            kinds.setdefault((factor[name], parameter.dim() >= 2, name in muon), []).append(parameter)
    groups = []
    for (scale, decay, by_muon), parameters in kinds.items():
        lr = scale * (config.muon.lr if by_muon else config.lr)
        group = {"params": parameters, "lr": lr, "base_lr": lr, "muon": by_muon}
        groups.append(group | {"weight_decay": config.weight_decay if decay else 0.0})
    if not groups:
        raise ValueError("optimizer.trained and optimizer.frozen leave nothing to train")
    return groups


def trained_names(model: nn.Module, config: OptimizerConfig) -> set[str]:
    """Which parameters of a model are moved: those that ``trained`` names, or all, less those of ``frozen``.

    Raises:
        ValueError: a glob that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    moved = {name for glob in config.trained or ["*"] for name in matching(names, glob, "optimizer.trained")}
    moved -= {name for glob in config.frozen for name in matching(names, glob, "optimizer.frozen")}
    return {name for name, parameter in model.named_parameters() if name in moved and parameter.requires_grad}


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer to the outside: Muon for groups marked ``muon``, AdamW for the others; they share groups and state.

    A ``found_inf`` of 1 makes it pass over an update, as fused AdamW does.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig):
        super().__init__(groups, {})
        self.config, self.found_inf = config, torch.zeros(())
        self._hand_out()

    def _hand_out(self) -> None:
        own, muon = self.config, self.config.muon
        both = (
            (True, torch.optim.Muon, {"momentum": muon.momentum, "ns_steps": muon.iterations}),
            (False, torch.optim.AdamW, {"betas": (own.beta1, own.beta2), "eps": own.eps, "fused": True}),
        )
        self.parts = []
        for by_muon, make, options in both:
            groups = [group for group in self.param_groups if group["muon"] == by_muon]
            if groups:
                part = make(groups, **options)
                part.state = self.state
                self.parts.append(part)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._hand_out()  # loading replaces the groups and the state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        if self.found_inf:
            return
        for part in self.parts:
            part.step()


def optimizer_for(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of what ``config`` leaves trainable in ``model``."""
    groups = parameter_groups(model, config)
    if config.muon:
        return MuonAndAdamW(groups, config)
    # Fused keeps one pass over the parameters, on CPU too; DeepSpeed's own CPU Adam would have to be compiled.
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine from 1 to ``final``; a function of the step alone, so nothing is to be saved."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
