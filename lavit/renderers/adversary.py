"""A critic of patches (PatchGAN) with the hinge loss and LeCam's regularization, in one pass with what it judges.

PatchGAN: arXiv 1611.07004, section 3.2.2; in an autoencoder: VQGAN, arXiv 2012.09841. LeCam: arXiv 2104.03310, eq. 7.

Usually there are two optimizers: one moves the generator by −D(x̂), the other moves the critic by its hinge loss. Here
one optimizer moves both by the sum of the two losses, and that is the same: the generator's loss reads the critic
through detached weights, the critic's loss reads detached pictures, so that no gradient of either reaches the
other's parameters, and Adam treats every parameter by itself. Both move from the same point, as two optimizers do
that step after both losses are computed. What they share is the clipping of the common norm: ``clip: 0`` is exact, as
the paper's configuration has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lavit.layers.ranks import world_size


@dataclass
class AdversaryConfig:
    """``weight`` (λ) of the generator's loss and ``lecam`` (φ) of the critic's regularization, from step ``start`` on.

    The critic has a convolution of stride 2 for each of ``channels``; ``decay`` is that of LeCam's averages.
    """

    weight: float = 0.1
    lecam: float = 1e-4
    start: int = 0
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    decay: float = 0.99


class Judged(NamedTuple):
    """generator () −D(x̂), critic () hinge loss, lecam () regularization; the weights are not in them."""

    generator: Tensor
    critic: Tensor
    lecam: Tensor


class Critic(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to scores (B, 1, s, s), s = S / 2^len(channels), each of one patch."""

    def __init__(self, channels: list[int]):
        super().__init__()
        blocks: list[nn.Module] = []
        for number, (inner, outer) in enumerate(zip([3, *channels], channels, strict=False)):
            blocks.append(nn.Conv2d(inner, outer, 4, stride=2, padding=1))
            if number:  # by picture, so that what one is judged does not depend on the batch
                blocks.append(nn.GroupNorm(1, outer))
            blocks.append(nn.LeakyReLU(0.2))
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Adversary(nn.Module):
    """A critic and both sides' losses. Until ``active`` it judges nothing and costs nothing."""

    def __init__(self, config: AdversaryConfig, seed: int = 0):
        super().__init__()
        self.config, self.active = config, config.start == 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = Critic(config.channels)
        self.register_buffer("real", torch.zeros(()))  # LeCam's averages of the scores
        self.register_buffer("made", torch.zeros(()))
        self._seen: list[Tensor] = []

    def forward(self, rebuilt: Tensor, images: Tensor) -> Judged:
        """Judge rebuilt pictures and real ones, both (B, 3, S, S) in [-1, 1]; the gradients go as the module says."""
        if not self.active:
            return Judged(*rebuilt.new_zeros(3))
        still = {name: value.detach() for name, value in self.critic.named_parameters()}
        generator = -functional_call(self.critic, still, (rebuilt,)).float().mean()
        real, made = self.critic(images).float(), self.critic(rebuilt.detach()).float()
        if self.training:
            self._seen.append(torch.stack([real.detach().mean(), made.detach().mean()]))
        return Judged(generator, hinge(real, made), lecam(real, made, self.real, self.made))

    @torch.no_grad()
    def move(self) -> None:
        """Move the averages by the scores since the last call, on all ranks together; once a step."""
        if not self._seen:
            return
        scores, self._seen = torch.stack(self._seen).mean(0), []
        if world_size() > 1:
            dist.all_reduce(scores)
            scores /= world_size()
        if scores.isfinite().all():  # the training loop drops such a step; averages would remember it
            for average, score in zip((self.real, self.made), scores, strict=True):
                average.lerp_(score, 1 - self.config.decay)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """() E max(0, 1 − D(x)) + E max(0, 1 + D(x̂)) of scores of any shape."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def lecam(real: Tensor, made: Tensor, real_average: Tensor, made_average: Tensor) -> Tensor:
    """() E (D(x) − α_made)² + E (D(x̂) − α_real)²: scores are drawn towards the average of the other side's."""
    return (real - made_average).square().mean() + (made - real_average).square().mean()


def check_adversary(config: AdversaryConfig, key: str) -> None:
    """Raises ValueError for weights, a start or a shape that cannot be."""
    if not (0 <= config.weight < math.inf and 0 <= config.lecam < math.inf and 0 <= config.decay < 1):
        raise ValueError(f"{key}: weight {config.weight} and lecam {config.lecam} must be at least 0, decay in [0, 1)")
    if config.start < 0 or not config.channels or min(config.channels) < 1:
        raise ValueError(f"{key}: start {config.start} must be at least 0 and channels {config.channels} at least 1")
