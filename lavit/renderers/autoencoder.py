"""A VAE of one's own: latents of pictures for the pixel decoder to work on.

Latent diffusion's first stage (arXiv 2112.10752, section 3.1) without its discriminator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

ERRORS = ("l1", "mse")


@dataclass
class AutoencoderConfig:
    """``error`` of pixels is l1 or mse; ``kl`` weighs the divergence of the latents from a normal distribution.

    ``features`` above 0 weighs a distance in features of the tokenizer's frozen encoder.
    """

    error: str = "l1"
    kl: float = 1e-6
    features: float = 0.0


class AutoencoderBatch(NamedTuple):
    """images (B, 3, S, S) in [-1, 1]; noise (B, C, h, w) of the posterior."""

    images: Tensor
    noise: Tensor


class AutoencoderLoss(NamedTuple):
    """loss () and its unweighted parts."""

    loss: Tensor
    error: Tensor
    kl: Tensor
    features: Tensor


class AutoencoderObjective(nn.Module):
    """The loss of a VAE: error of pixels + kl · divergence + features · distance, each a mean over pixel values.

    Args:
        vae: is trained.
        encoder: frozen and beside it; ``differentiable(images)`` of images in [0, 1], (B, 3, E, E) with E its
            ``config.image_size``, gives features (B, P, D). Needed where ``config.features`` is above 0.
    """

    def __init__(self, vae: AutoencoderKL, config: AutoencoderConfig, encoder: nn.Module | None = None):
        super().__init__()
        check_autoencoder(config)
        self.vae, self.config = vae, config
        self._beside = (encoder,)

    def forward(self, batch: AutoencoderBatch) -> AutoencoderLoss:
        posterior = self.vae.encode(batch.images).latent_dist
        rebuilt = self.vae.decode(posterior.mean + posterior.std * batch.noise).sample.float()
        difference = rebuilt - batch.images
        error = (difference.abs() if self.config.error == "l1" else difference.square()).mean()
        # Summed over latents and divided by the number of pixel values, as if both parts were sums over a picture.
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / batch.images.numel()
        weighed = self.config.features > 0
        distance = feature_distance(self._beside[0], rebuilt, batch.images) if weighed else torch.zeros_like(error)
        loss = error + self.config.kl * kl + self.config.features * distance
        return AutoencoderLoss(loss, error.detach(), kl.detach(), distance.detach())


def feature_distance(encoder: nn.Module, rebuilt: Tensor, images: Tensor, wanted: Tensor | None = None) -> Tensor:
    """() mean over patches of 1 − cosine of an encoder's standardized features; its gradient goes to ``rebuilt``.

    Both are (B, 3, S, S) in [-1, 1] and are scaled to the size that the encoder reads. ``wanted`` (B, P, D) are the
    standardized features of ``images`` where they are known already.
    """
    encoder = encoder.eval().to(images.device)
    size = encoder.config.image_size

    def seen(x: Tensor) -> Tensor:
        scaled = nn.functional.interpolate((x + 1) / 2, (size, size), mode="bilinear")
        return encoder.standardize(encoder.differentiable(scaled))

    with torch.no_grad():
        wanted = seen(images) if wanted is None else wanted
    return 1 - nn.functional.cosine_similarity(seen(rebuilt), wanted, dim=-1, eps=1e-6).mean()


def check_autoencoder(config: AutoencoderConfig, key: str = "autoencoder.model") -> None:
    """Raises ValueError for an unknown error, or a weight that is below 0 or no number."""
    if config.error not in ERRORS:
        raise ValueError(f"{key}.error '{config.error}' is unknown; choose {' or '.join(ERRORS)}")
    if not (0 <= config.kl < math.inf and 0 <= config.features < math.inf):
        raise ValueError(f"{key}: kl {config.kl} and features {config.features} must be at least 0")


def posterior_noise(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """(B, *shape) normal noise of the pictures whose generators are given."""
    return torch.stack([torch.randn(shape, generator=one) for one in generators])


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, batches: Iterable[Tensor]) -> None:
    """Set the VAE's ``scaling_factor`` to 1 / std of its latents over batches of images (B, 3, S, S) in [-1, 1]."""
    count, total, square = 0, 0.0, 0.0
    for images in batches:
        latents = vae.encode(images.to(vae.device)).latent_dist.mean.double()
        count, total, square = count + latents.numel(), total + latents.sum(), square + latents.square().sum()
    std = (square / count - (total / count) ** 2).sqrt()
    vae.register_to_config(scaling_factor=float(1 / std.clamp_min(1e-6)))
