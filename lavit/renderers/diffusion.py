"""Reconstructed features to pixels: a diffusers U-Net conditioned by cross-attention.

LaVIT trains Stable Diffusion's U-Net on reconstructed features in place of text (arXiv 2309.04669, section 3.1). Small
models work on folded pixels, start from a linear draft and predict the clean image; SD-1.5 would predict the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn


@dataclass
class UNetConfig:
    """Shape of diffusers' ``UNet2DConditionModel``; one entry of ``channels`` a resolution, halved between them.

    ``cross_attention`` says at which resolutions, besides the middle, pixels attend to the features.
    """

    channels: list[int] = field(default_factory=lambda: [96, 160])
    cross_attention: list[bool] = field(default_factory=lambda: [False, False])
    layers: int = 1
    context: int = 128
    head_width: int = 32
    groups: int = 16


@dataclass
class DiffusionConfig:
    """``prediction`` is diffusers' name of what the U-Net gives: sample or epsilon.

    ``time_mean`` and ``time_std`` are of the logit-normal from which training draws t/T: above 0 means noisier.
    ``draft`` adds a least-squares linear picture of the features, which the U-Net sees and corrects.
    """

    image_size: int = 64
    patch: int = 8
    unet: UNetConfig = field(default_factory=UNetConfig)
    draft: bool = True
    prediction: str = "sample"
    schedule: str = "squaredcos_cap_v2"
    timesteps: int = 1000
    time_mean: float = 1.0
    time_std: float = 1.2
    drop_condition: float = 0.1
    sampling_steps: int = 20
    guidance: float = 1.5


class RendererBatch(NamedTuple):
    """features (B, P, D); images (B, 3, S, S) in [-1, 1]; noise (B, C, h, w); time (B,) int64; drop (B,) bool."""

    features: Tensor
    images: Tensor
    noise: Tensor
    time: Tensor
    drop: Tensor


class RendererLoss(NamedTuple):
    loss: Tensor
    draft: Tensor


class DiffusionRenderer(nn.Module):
    """Features (B, P, D), standardized as the tokenizer's, to images (B, 3, S, S) in [0, 1]."""

    def __init__(self, config: DiffusionConfig, feature_width: int, patches: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch
        if self.grid * config.patch != config.image_size:
            raise ValueError(f"decoder.image_size {config.image_size} is no multiple of decoder.patch {config.patch}")
        if config.draft and self.grid**2 != patches:
            raise ValueError(
                f"decoder.draft needs a patch of the picture for each of the {patches} features, not {self.grid**2}; "
                "change decoder.patch or set decoder.draft to false"
            )
        self.channels = 3 * config.patch**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet = build_unet(config, self.channels, self.grid)
            self.project = nn.Linear(feature_width, config.unet.context)
            self.position = nn.Parameter(torch.randn(patches, config.unet.context) * 0.02)
            self.unconditional = nn.Parameter(torch.randn(1, config.unet.context) * 0.02)
        # The features, the image's mean feature and a constant.
        self.register_buffer("draft_weight", torch.zeros(2 * feature_width + 1, self.channels))
        self.noising = DDPMScheduler(**schedule_options(config))

    def fold(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 3·patch², S/patch, S/patch)."""
        return F.pixel_unshuffle(images, self.config.patch)

    def unfold(self, folded: Tensor) -> Tensor:
        """(B, 3·patch², h, w) in about [-1, 1] to images (B, 3, S, S) in [0, 1]."""
        return (F.pixel_shuffle(folded, self.config.patch).clamp(-1, 1) + 1) / 2

    def draft(self, features: Tensor) -> Tensor:
        """The linear picture, folded: (B, C, h, w) in about [-1, 1]."""
        flat = draft_inputs(features) @ self.draft_weight
        return flat.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def forward(self, batch: RendererBatch) -> RendererLoss:
        """Mean squared error of the predicted sample or noise (Ho et al., arXiv 2006.11239)."""
        clean = self.fold(batch.images)
        noisy = self.noising.add_noise(clean, batch.noise, batch.time)
        predicted, draft = self.predict(noisy, batch.time, batch.features, batch.drop)
        target = clean if self.config.prediction == "sample" else batch.noise
        return RendererLoss(F.mse_loss(predicted.float(), target), F.mse_loss(draft, clean).detach())

    def predict(self, noisy: Tensor, time: Tensor, features: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """The U-Net's prediction and the draft, both folded; where ``drop`` (B,) is set the image is unknown."""
        context = self.project(features) + self.position
        context = torch.where(drop[:, None, None], self.unconditional.expand_as(context), context)
        if not self.config.draft:
            return self.unet(noisy, time, context).sample, torch.zeros_like(noisy)
        draft = self.draft(features) * ~drop[:, None, None, None]
        out = self.unet(torch.cat([noisy, draft], dim=1), time, context).sample
        return (out + draft if self.config.prediction == "sample" else out), draft

    @torch.no_grad()
    def render(self, features: Tensor, generator: torch.Generator, guidance: float | None = None) -> Tensor:
        """DDIM samples (B, 3, S, S) in [0, 1] of features (B, P, D), with guidance ``u + s (c − u)``."""
        scale = self.config.guidance if guidance is None else guidance
        sampler = DDIMScheduler(**schedule_options(self.config), clip_sample=True, timestep_spacing="trailing")
        sampler.set_timesteps(self.config.sampling_steps)
        n = len(features)
        x = torch.randn(n, self.channels, self.grid, self.grid, generator=generator)
        drop = torch.zeros(n, dtype=torch.bool)
        for t in sampler.timesteps:
            time = t.expand(n)
            if scale == 1.0:
                out = self.predict(x, time, features, drop)[0]
            else:
                both = torch.cat([drop, ~drop])
                pair = self.predict(x.repeat(2, 1, 1, 1), time.repeat(2), features.repeat(2, 1, 1), both)[0]
                known, free = pair.chunk(2)
                out = free + scale * (known - free)
            x = sampler.step(out, t, x).prev_sample
        return self.unfold(x)

    @torch.no_grad()
    def fit_draft(self, batches, ridge: float = 1.0) -> None:
        """Set the draft by least squares over an iterable of (features (B, P, D), images (B, 3, S, S) in [-1, 1])."""
        size = len(self.draft_weight)
        gram = torch.zeros(size, size, dtype=torch.float64)
        cross = torch.zeros(size, self.channels, dtype=torch.float64)
        for features, images in batches:
            x = draft_inputs(features).flatten(0, 1)
            y = self.fold(images).flatten(2).transpose(1, 2).flatten(0, 1)
            gram += (x.T @ x).double()
            cross += (x.T @ y).double()
        gram += ridge * torch.eye(size, dtype=torch.float64)
        self.draft_weight.copy_(torch.linalg.solve(gram, cross).float())


def draft_inputs(features: Tensor) -> Tensor:
    """(B, P, D) features to (B, P, 2D + 1): each patch, the image's mean and a constant."""
    mean = features.mean(1, keepdim=True).expand_as(features)
    return torch.cat([features, mean, torch.ones_like(features[..., :1])], dim=-1)


def schedule_options(config: DiffusionConfig) -> dict:
    return {
        "num_train_timesteps": config.timesteps,
        "beta_schedule": config.schedule,
        "prediction_type": config.prediction,
    }


def build_unet(config: DiffusionConfig, channels: int, grid: int) -> UNet2DConditionModel:
    """diffusers' U-Net; its last convolution starts at zero, so that training starts from the draft."""
    u = config.unet
    if len(u.channels) != len(u.cross_attention):
        raise ValueError("decoder.unet.channels and decoder.unet.cross_attention must have one entry a resolution each")
    unet = UNet2DConditionModel(
        sample_size=grid,
        in_channels=channels * (2 if config.draft else 1),
        out_channels=channels,
        block_out_channels=tuple(u.channels),
        layers_per_block=u.layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in u.cross_attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(u.cross_attention)),
        cross_attention_dim=u.context,
        attention_head_dim=[c // u.head_width for c in u.channels],
        norm_num_groups=u.groups,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def training_noise(
    config: DiffusionConfig, shape: tuple[int, ...], generators: list[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """noise (B, *shape) float, time (B,) int64 and drop (B,) bool of the pictures whose generators are given."""
    noise = torch.stack([torch.randn(shape, generator=one) for one in generators])
    level = torch.cat([torch.randn(1, generator=one) for one in generators]) * config.time_std + config.time_mean
    time = (torch.sigmoid(level) * config.timesteps).long().clamp(max=config.timesteps - 1)
    drop = torch.cat([torch.rand(1, generator=one) for one in generators]) < config.drop_condition
    return noise, time, drop
