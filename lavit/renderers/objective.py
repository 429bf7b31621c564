"""What a pixel decoder is trained on: visual words and images, with the noise of each picture.

The frozen tokenizer and the VAE work on the device, within the forward pass and without gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.sampling import FLOW


class RendererBatch(NamedTuple):
    """words (B, N) int64 and keep (B, N) bool; images (B, 3, S, S) in [-1, 1]; noise (B, C, h, w); time (B,) int64;
    drop (B,) bool."""

    words: Tensor
    keep: Tensor
    images: Tensor
    noise: Tensor
    time: Tensor
    drop: Tensor


class RendererLoss(NamedTuple):
    loss: Tensor


class DraftedLoss(NamedTuple):
    """draft: the mean squared error of the linear picture."""

    loss: Tensor
    draft: Tensor


class RendererObjective(nn.Module):
    """The loss of a renderer that is trained.

    Args:
        renderer: is trained.
        tokenizer: stands beside it, frozen; its ``decode(lookup(words, keep))`` gives features (B, P, D).
    """

    def __init__(self, renderer: DiffusionRenderer, tokenizer: nn.Module):
        super().__init__()
        self.renderer = renderer
        self._beside = (tokenizer.eval(),)
        # ᾱ of every time
        cumulated = DDPMScheduler(**renderer.config.process.betas).alphas_cumprod
        self.register_buffer("signal", cumulated, persistent=False)

    @torch.no_grad()
    def features(self, words: Tensor, keep: Tensor) -> Tensor:
        """Reconstructed features (B, P, D) float32 of words (B, N), on the renderer's device."""
        device = self.renderer.device
        tokenizer = self._beside[0].to(device)
        return tokenizer.decode(tokenizer.lookup(words.to(device), keep.to(device))).float()

    def forward(self, batch: RendererBatch) -> RendererLoss | DraftedLoss:
        """Mean squared error of what is predicted (Ho et al., arXiv 2006.11239), by picture and weighted."""
        config = self.renderer.config
        clean = self.renderer.latents.encode(batch.images)
        features = self.features(batch.words, batch.keep)
        if config.prediction == FLOW:
            level = ((batch.time + 1) / config.timesteps).view(-1, 1, 1, 1)  # in (0, 1], as the samplers tell it
            noisy, target = (1 - level) * clean + level * batch.noise, batch.noise - clean
            time = level.flatten() * config.timesteps
        else:
            signal = self.signal[batch.time].view(-1, 1, 1, 1)
            noisy = signal.sqrt() * clean + (1 - signal).sqrt() * batch.noise
            target, time = target_of(config.prediction, clean, batch.noise, signal), batch.time
        predicted, draft = self.renderer.predict(noisy, time, features, batch.drop)
        error = (predicted.float() - target).square().mean((1, 2, 3))
        if config.min_snr is not None:
            error = error * min_snr_weight(self.signal[batch.time], config.min_snr, config.prediction)
        if draft is None:
            return RendererLoss(error.mean())
        return DraftedLoss(error.mean(), (draft.float() - clean).square().mean().detach())


def target_of(prediction: str, clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """What is to be predicted at the signal ᾱ: the image, the noise, or v (arXiv 2202.00512, appendix D)."""
    if prediction == "v_prediction":
        return signal.sqrt() * noise - (1 - signal).sqrt() * clean
    return clean if prediction == "sample" else noise


def min_snr_weight(signal: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weights of the error at ᾱ (B,): min(SNR, γ) of the image, over SNR of the noise, over SNR + 1 of v.

    Source: arXiv 2303.09556, section 3.4.
    """
    ratio = signal / (1 - signal)
    weight = ratio.clamp(max=gamma)
    return weight / {"sample": 1.0, "epsilon": ratio, "v_prediction": ratio + 1}[prediction]


def training_noise(config: DiffusionConfig, generators: list[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
    """noise (B, C, h, w), time (B,) int64 and drop (B,) bool of the pictures whose generators are given."""
    noise = torch.stack([torch.randn(config.shape, generator=one) for one in generators])
    drawn = torch.cat([torch.randn(1, generator=one) for one in generators])
    if config.time_std is None:
        level = torch.special.ndtr(drawn)
    else:
        level = torch.sigmoid(drawn * config.time_std + config.time_mean)
    time = (level * config.timesteps).long().clamp(max=config.timesteps - 1)
    drop = torch.cat([torch.rand(1, generator=one) for one in generators]) < config.drop_condition
    return noise, time, drop
