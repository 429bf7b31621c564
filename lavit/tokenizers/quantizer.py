"""Nearest-code quantization with a codebook moved by exponential averages.

LaVIT, arXiv 2309.04669, section 3.1: Linear–Tanh–Linear to 32 dimensions, l2 normalisation, nearest of K codes; the
codebook starts from k-means over the features of a trained merger and follows them by moving averages (van den Oord
et al., arXiv 1711.00937, appendix A.1). Codes that nobody chose for a while start anew at a random input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.layers.ranks import gathered, summed_over_ranks, world_size
from lavit.weights import read_tensors


@dataclass
class QuantizerConfig:
    """``codes`` of dimension ``width``; the paper's are 16,384 × 32.

    ``commitment`` and ``entropy`` weigh terms of the loss. Entropy (MAGVIT-v2, arXiv 2310.05737, eq. 5) asks that the
    tokens of a batch spread over the codes while each is sure of its own; at 0 it is off, as in the paper.
    A code whose averaged share of the tokens falls under ``dead_below`` of the mean share 1/K is restarted.
    ``file`` is a codebook that was made elsewhere, a .safetensors file of one matrix (codes, width). The directions of
    its rows stay as they are, and only what leads to them and from them is trained; codes are found by direction, so
    that lengths do not count.
    """

    codes: int = 1024
    width: int = 32
    decay: float = 0.99
    commitment: float = 0.25
    entropy: float = 0.0
    entropy_temperature: float = 0.05
    dead_below: float = 0.03
    kmeans_iterations: int = 10
    kmeans_vectors: int = 32768
    file: str | None = None


class Quantized(NamedTuple):
    """words (B, N, C) float, straight-through; codes (B, N) int64; commitment and entropy () float losses."""

    words: Tensor
    codes: Tensor
    commitment: Tensor
    entropy: Tensor


class Quantizer(nn.Module):
    """Features (B, N, D) to words of the codebook. All arithmetic on distances and averages is fp32."""

    def __init__(self, feature_width: int, config: QuantizerConfig, seed: int = 0):
        super().__init__()
        self.config, self.seed = config, seed
        self.proj = nn.Sequential(
            nn.Linear(feature_width, feature_width), nn.Tanh(), nn.Linear(feature_width, config.width)
        )
        start = torch.randn(config.codes, config.width, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("codebook", F.normalize(start, dim=-1))
        self.register_buffer("count", torch.full((config.codes,), 1 / config.codes))
        self.register_buffer("total", self.codebook / config.codes)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._seen: list[tuple[Tensor, Tensor]] = []  # since the last move: unit vectors and their codes

    def project(self, features: Tensor) -> Tensor:
        """(..., D) features to unit vectors (..., C) float32, whatever the precision around it."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.proj(features.float()), dim=-1)

    def nearest(self, unit: Tensor) -> Tensor:
        """(..., C) unit vectors to the (...) int64 codes at the least distance; a code may be of any length."""
        with torch.autocast(unit.device.type, enabled=False):
            return (unit.float() @ self.codebook.T - self.codebook.square().sum(-1) / 2).argmax(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) int64 codes to (..., C) float32 words."""
        return self.codebook[codes]

    def forward(self, features: Tensor, keep: Tensor) -> Quantized:
        """Quantize (B, N, D) features; in training mode also remember the kept ones for :meth:`move`.

        The words of places that ``keep`` (B, N) leaves out are zero and touch nothing.
        """
        with torch.autocast(features.device.type, enabled=False):
            unit = self.project(features.float())
            with torch.no_grad():
                codes = self.nearest(unit)
                words = self.lookup(codes)
            mask = keep[..., None].float()
            commitment = ((unit - words).square().sum(-1) * keep).sum() / keep.sum()
            kept = unit[keep]
            entropy = self.entropy(kept) if self.config.entropy else commitment.new_zeros(())
            if self.training:
                self._seen.append((kept.detach(), codes[keep]))
            straight = unit + (words - unit).detach()
            return Quantized(straight * mask, codes * keep, commitment, entropy)

    def entropy(self, unit: Tensor) -> Tensor:
        """Mean entropy of the vectors' soft choices of a code, minus the entropy of the mean choice, over all ranks.

        Args:
            unit: (n, C) unit vectors; a choice is softmax(similarity / ``entropy_temperature``) over the codes.

        Returns:
            () float32 from -log K (sure of their codes, all codes equally often) to log K.
        """
        chance = (unit @ self.codebook.T / self.config.entropy_temperature).softmax(-1)
        sums = [chance.sum(0), entropy_of(chance).sum()[None], chance.new_tensor([len(unit)])]
        *_, own, n = total = summed_over_ranks(torch.cat(sums))
        return own / n - entropy_of(total[:-2] / n)

    @torch.no_grad()
    def move(self) -> None:
        """Move the codebook by what was quantized in training mode since the last call, on all ranks together.

        Once a step, so that ranks and accumulated micro-batches lead to what one batch of all of them leads to. One of
        a file stays.
        """
        if self.config.file is not None:
            self._seen = []
        if not self._seen:
            return
        unit, codes = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        parts, self._seen = [part for part, _ in self._seen], []
        size, decay = self.config.codes, self.config.decay
        count = torch.zeros(size, device=unit.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
        total = torch.zeros_like(self.total).index_add_(0, codes, unit)
        if world_size() > 1:
            dist.all_reduce(count)
            dist.all_reduce(total)
        if not total.isfinite().all():
            return  # the training loop drops such a step; averages would remember it for good
        # Shares instead of counts, so that neither the batch size nor the token counts change their scale.
        seen = count.sum()
        self.count.mul_(decay).add_(count / seen, alpha=1 - decay)
        self.total.mul_(decay).add_(total / seen, alpha=1 - decay)
        self.updates += 1
        dead = self.count < self.config.dead_below / size
        if dead.any():
            # Same generator and same pool on every rank: every rank restarts the same codes at the same vectors.
            pool = torch.cat([gathered(part) for part in parts])  # in the order of the global batch
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.updates))
            chosen = pool[torch.randint(len(pool), (int(dead.sum()),), generator=generator)]
            self.total[dead] = chosen / size
            self.count[dead] = 1 / size
        self.codebook.copy_(F.normalize(self.total, dim=-1))

    @torch.no_grad()
    def take(self, codebook: Tensor) -> None:
        """Set the codebook to the directions of (K, C) vectors."""
        self.codebook.copy_(F.normalize(codebook.float(), dim=-1))
        self.total.copy_(self.codebook / self.config.codes)

    @torch.no_grad()
    def start_from(self, unit: Tensor) -> None:
        """Set the codebook to the k-means centres of (n, C) float32 unit vectors.

        Raises:
            ValueError: fewer different vectors than codes.
        """
        different = len(unit.unique(dim=0))
        if different < self.config.codes:
            raise ValueError(
                f"k-means needs at least {self.config.codes} different vectors for as many codes and got {different} "
                f"among {len(unit)}; use more images, a smaller tokenizer.quantizer.codes or a larger kmeans_vectors"
            )
        generator = torch.Generator().manual_seed(self.seed)
        pick = torch.randperm(len(unit), generator=generator)[: max(self.config.kmeans_vectors, self.config.codes)]
        centres, count = spherical_kmeans(unit[pick], self.config.codes, self.config.kmeans_iterations, generator)
        share = count / count.sum()
        self.codebook.copy_(centres)
        self.count.copy_(share)
        self.total.copy_(centres * share[:, None])


def read_codebook(config: QuantizerConfig) -> Tensor:
    """The codebook (codes, width) of ``config.file``.

    Raises:
        ValueError: no such file, a broken one, one of another size, or rows without a direction.
    """
    path = Path(config.file)
    if not path.is_file():
        raise ValueError(f"tokenizer.model.quantizer.file {path} does not exist; give a .safetensors file")
    state = read_tensors(path, "give a .safetensors file of one matrix")
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if list(shapes.values()) != [(config.codes, config.width)]:
        raise ValueError(
            f"tokenizer.model.quantizer.file {path} has {shapes}; it must hold one matrix of codes × width, "
            f"{config.codes} × {config.width}"
        )
    (codebook,) = state.values()
    lengths = codebook.double().norm(dim=-1)
    if not codebook.is_floating_point() or not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise ValueError(
            f"tokenizer.model.quantizer.file {path} has rows that are no directions ({codebook.dtype}): each must be "
            "finite floats, not all zero"
        )
    return codebook


def spherical_kmeans(unit: Tensor, size: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k-means by cosine similarity over (n, C) unit vectors: (size, C) unit centres and (size,) float counts.

    Starts at random vectors; an empty cluster moves to the vector that is worst served.
    """
    centres = unit[torch.randperm(len(unit), generator=generator)[:size]].clone()
    for _ in range(iterations):
        similarity, owner = nearest_centres(unit, centres)
        count = torch.bincount(owner, minlength=size).float()
        total = torch.zeros_like(centres).index_add_(0, owner, unit)
        empty = count == 0
        if empty.any():
            worst = similarity.argsort()[: int(empty.sum())]
            total[empty] = unit[worst]
        centres = F.normalize(total, dim=-1)
    _, owner = nearest_centres(unit, centres)
    return centres, torch.bincount(owner, minlength=size).float().clamp_min(1.0)


def nearest_centres(unit: Tensor, centres: Tensor, block: int = 8192) -> tuple[Tensor, Tensor]:
    """The similarity (n,) and number (n,) int64 of the centre (K, C) nearest to each of (n, C) unit vectors.

    In blocks, because all n × K similarities of the paper's codebook would take gigabytes.
    """
    parts = [(part @ centres.T).max(-1) for part in unit.split(block)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def entropy_of(chance: Tensor) -> Tensor:
    """(..., K) probabilities to their (...) entropy in nats."""
    return -torch.special.xlogy(chance, chance.clamp_min(1e-12)).sum(-1)
