"""What a pixel decoder works on: pixels folded into channels, or the latents of a VAE."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lavit.config import OneOf
from lavit.renderers.pretrained import differences, open_model


@dataclass
class FoldedConfig:
    """Space to depth: each square of ``patch`` pixels becomes a place with 3·patch² channels; 1 leaves pixels."""

    patch: int = 8


@dataclass
class VAEConfig:
    """Shape of diffusers' ``AutoencoderKL``; one entry of ``channels`` a resolution, halved between them.

    With ``folder``, a local diffusers folder (SD-1.5's ``vae/``), it is opened there, else it is trained by this run.
    """

    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    latent_channels: int = 4
    layers: int = 1
    groups: int = 16
    folder: str | None = None


@dataclass
class LatentsConfig(OneOf):
    folded: FoldedConfig | None = None
    vae: VAEConfig | None = None

    @property
    def factor(self) -> int:
        """Pixels a side of one place."""
        kind, choice = self.chosen()
        return choice.patch if kind == "folded" else 2 ** (len(choice.channels) - 1)

    @property
    def channels(self) -> int:
        kind, choice = self.chosen()
        return 3 * choice.patch**2 if kind == "folded" else choice.latent_channels


class Latents(nn.Module):
    """Images to what is denoised, and back, without gradients; ``vae`` is None where pixels are folded.

    A VAE's latents are the means of its posteriors times its ``scaling_factor``, so that they are of about size one.
    """

    def __init__(self, config: LatentsConfig, vae: AutoencoderKL | None = None):
        super().__init__()
        self.config = config
        self.vae = vae.eval().requires_grad_(False) if vae is not None else None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to (B, C, H / factor, W / factor) float32."""
        if self.config.folded:
            return F.pixel_unshuffle(images, self.config.factor)
        vae = self._opened()
        return vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to images (B, 3, h · factor, w · factor) float32 in [0, 1]."""
        if self.config.folded:
            images = F.pixel_shuffle(latents, self.config.factor)
        else:
            vae = self._opened()
            images = vae.decode(latents / vae.config.scaling_factor).sample.float()
        return (images.clamp(-1, 1) + 1) / 2

    def _opened(self) -> AutoencoderKL:
        if self.vae is None:
            raise ValueError("this renderer works on a VAE's latents and was made without the VAE")
        return self.vae


def vae_options(config: VAEConfig) -> dict:
    """The arguments of diffusers' ``AutoencoderKL``."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
    }


def new_vae(config: VAEConfig, image_size: int, seed: int) -> AutoencoderKL:
    """An untrained VAE whose ``scaling_factor`` is still to be measured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(**vae_options(config), sample_size=image_size, scaling_factor=1.0)


def open_vae(
    folder: str,
    config: VAEConfig,
    key: str = "decoder.model.latents.vae",
    dtype: torch.dtype | None = torch.float32,
) -> AutoencoderKL:
    """The VAE of a diffusers folder in ``dtype``, or, with None, in its own.

    Raises:
        ValueError: there is none, or it has another shape than ``config`` says.
    """
    differences(AutoencoderKL, folder, vae_options(config), key)
    return open_model(AutoencoderKL, folder, dtype)
