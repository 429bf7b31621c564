"""A pixel decoder of a few hundred weights, with folded pixels or with a VAE's latents."""

from __future__ import annotations

import dataclasses

import torch

from lavit.renderers.conditioning import ConditioningConfig, SDConfig, SDXLConfig
from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.latents import FoldedConfig, LatentsConfig, VAEConfig, new_vae
from lavit.renderers.unet import UNetConfig

WIDTH, PATCHES = 5, 16
UNET = UNetConfig([8, 16], [False, True], heads=[1, 2], layers=1, groups=4)
CONFIG = DiffusionConfig(
    image_size=16,
    latents=LatentsConfig(folded=FoldedConfig(4)),
    conditioning=ConditioningConfig(sd=SDConfig(8)),
    unet=UNET,
    sampling_steps=3,
)
LARGE = {
    "latents": LatentsConfig(vae=VAEConfig([8, 8], latent_channels=3, groups=4)),
    "conditioning": ConditioningConfig(sdxl=SDXLConfig([8, 12], heads=3, time=8)),
    "draft": False,
}


def renderer(**changes) -> DiffusionRenderer:
    """One whose last convolution is not at its start of zeros, so that everything has an influence."""
    config = dataclasses.replace(CONFIG, **changes)
    vae = new_vae(config.latents.vae, 16, seed=7) if config.latents.vae else None
    made = DiffusionRenderer(config, WIDTH, PATCHES, vae=vae).eval()
    torch.nn.init.normal_(made.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    if config.draft:
        made.draft_weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return made
