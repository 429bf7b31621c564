"""What SPAE's autoencoder is trained by: appearance, a critic, and words that say what is to be seen.

Source: arXiv 2306.17842, section 3.1: L = L_app + α w L_sem with w = sg(L_app / L_sem).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavit.renderers.adversary import Adversary, AdversaryConfig, check_adversary
from lavit.renderers.autoencoder import feature_distance
from lavit.tokenizers.pyramid import AT_ONCE
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokenizers.relevance import pools, relevance


@dataclass
class PyramidLossConfig:
    """Weights, by default the paper's.

    ``commitment`` is β, ``features`` η of the perceptual distance, ``semantic`` α; ``thresholds`` are ρ of the first
    layers, and the layers after them have no semantic loss. ``shorter`` is the share of a batch whose pictures are
    rebuilt from a random prefix of the layers: ours, so that the decoder knows them; 0 in the paper.
    """

    commitment: float = 0.33
    features: float = 0.1
    semantic: float = 1.0
    thresholds: list[float] = field(default_factory=lambda: [0.98, 0.95, 0.9, 0.85, 0.8])
    shorter: float = 0.0
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)


class PyramidBatch(NamedTuple):
    """images (B, 3, S, S) float32 in [-1, 1]; layers (B,) int64, how many the picture is rebuilt from; pooled (B, F)
    features of a frozen encoder, or None where the autoencoder has pixels alone; vectors (B, E) of length one, by
    which words are relevant, or None without a semantic loss; seen (B, P, D), the standardized features of the images
    for the perceptual distance, or None where they are not kept."""

    images: Tensor
    layers: Tensor
    pooled: Tensor | None
    vectors: Tensor | None
    seen: Tensor | None = None


class PyramidLoss(NamedTuple):
    """loss () and its parts, unweighted; weight is α w. Only the loss carries gradients."""

    loss: Tensor
    error: Tensor
    commitment: Tensor
    features: Tensor
    generator: Tensor
    critic: Tensor
    lecam: Tensor
    semantic: Tensor
    weight: Tensor


class PyramidObjective(nn.Module):
    """The loss of a pyramid autoencoder and its critic, for one optimizer (:mod:`lavit.renderers.adversary`).

    Args:
        tokenizer: is trained, but for its codebook.
        config: weights.
        words: (K, E) unit vectors of the words; None without a semantic loss.
        encoder: frozen and beside it, for the perceptual distance.
    """

    def __init__(
        self,
        tokenizer: PyramidTokenizer,
        config: PyramidLossConfig,
        words: Tensor | None = None,
        encoder: nn.Module | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.tokenizer, self.config = tokenizer, config
        self.adversary = Adversary(config.adversary, seed)
        self._beside = (encoder,)
        self.register_buffer("words", words, persistent=False)

    def forward(self, batch: PyramidBatch) -> PyramidLoss:
        cfg, quantizer = self.config, self.tokenizer.quantizer
        latents = self.tokenizer.latents(batch.images, batch.pooled)
        named = quantizer(latents)
        rebuilt = self.tokenizer.pixels(quantizer.straight(latents, named, batch.layers)).float()
        error = (rebuilt - batch.images).square().mean()
        nothing = torch.zeros_like(error)
        distance = nothing
        if cfg.features:
            distance = feature_distance(self._beside[0], rebuilt, batch.images, batch.seen)
        commitment = quantizer.commitment(latents, named)
        judged = self.adversary(rebuilt, batch.images)
        appearance = error + cfg.commitment * commitment + cfg.features * distance
        semantic = weight = nothing
        if cfg.semantic:
            semantic = self.semantic(named.read, batch.vectors)
            weight = cfg.semantic * dynamic_weight(appearance, semantic)
        adversary = cfg.adversary.weight * judged.generator + judged.critic + cfg.adversary.lecam * judged.lecam
        loss = appearance + adversary + weight * semantic
        parts = (error, commitment, distance, *judged, semantic, weight)
        return PyramidLoss(loss, *(part.detach() for part in parts))

    def semantic(self, read: Tensor, vectors: Tensor) -> Tensor:
        """() L_sem of what the tokens of all layers quantize (B, N, C): the mean over the layers with a threshold."""
        found = pools(relevance(vectors, self.words), self.config.thresholds)
        layers = read.split(self.tokenizer.counts, dim=1)
        losses = [
            semantic_loss(layer, pool, self.tokenizer.quantizer.codebook)
            for layer, pool in zip(layers, found, strict=False)
        ]
        return torch.stack(losses).mean()


def semantic_loss(read: Tensor, pool: Tensor, codebook: Tensor) -> Tensor:
    """() E_z E_{c∈C} −log softmax_c(−‖z − e(·)‖²) in fp32.

    ``read`` (B, n, C) are a layer's vectors z, ``pool`` (B, K) bool the candidates C of each picture, at least one, and
    ``codebook`` (K, C) the vectors e. ‖z‖² is common to all words and leaves the softmax; of the candidates only
    the means of e and of ‖e‖² count, so that no table of (B, n, |C|) is made.
    """
    with torch.autocast(read.device.type, enabled=False):
        read, codebook = read.float(), codebook.float()
        squares = codebook.square().sum(-1)
        share = pool.float() / pool.sum(1, keepdim=True)
        own = 2 * (read * (share @ codebook)[:, None]).sum(-1) - (share @ squares)[:, None]
        parts = read.flatten(0, 1).split(AT_ONCE)
        whole = [
            checkpoint(_log_partition, part, codebook, squares, use_reentrant=False)
            if len(parts) > 1  # a table of one block is small enough to be kept
            else _log_partition(part, codebook, squares)
            for part in parts
        ]
        return (torch.cat(whole) - own.flatten()).mean()


def _log_partition(z: Tensor, codebook: Tensor, squares: Tensor) -> Tensor:
    """(n,) log Σ_k exp(2 z·e(k) − ‖e(k)‖²)."""
    return (2 * z @ codebook.T - squares).logsumexp(-1)


def dynamic_weight(appearance: Tensor, semantic: Tensor) -> Tensor:
    """() w = sg(L_app / L_sem): both parts of the loss are of one size, and w has no gradient.

    The critic's parts, which may be below zero, are left out of L_app here. It is that of the pictures at hand: of a
    rank's, and of a micro-batch's where there are several.
    """
    return (appearance / semantic.clamp_min(1e-8)).detach()


def check_pyramid_loss(config: PyramidLossConfig, layers: int, key: str) -> None:
    """Raises ValueError for weights that cannot be, or more thresholds than the pyramid has layers."""
    for name in ("commitment", "features", "semantic"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{key}.{name} is {getattr(config, name)}; it must be at least 0")
    if not 0 <= config.shorter <= 1:
        raise ValueError(f"{key}.shorter is {config.shorter}, but it is a share, from 0 to 1")
    if len(config.thresholds) > layers or any(not 0 <= rho <= 1 for rho in config.thresholds):
        raise ValueError(f"{key}.thresholds {config.thresholds}: one in [0, 1] for each of at most {layers} layers")
    if config.semantic and not config.thresholds:
        raise ValueError(f"{key}.semantic is {config.semantic} but thresholds are empty; set it to 0 or give some")
    check_adversary(config.adversary, f"{key}.adversary")
