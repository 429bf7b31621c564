"""Codes of speech to sound: a small network makes a mel spectrogram of them, and Griffin–Lim a waveform of that.

TEAL (arXiv 2311.04589) leaves open how its codes of audio become audible; this vocoder is our extension of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

RATE, HOP = 16000, 160  # samples a second, and of a frame: those of Whisper's spectrograms
FLOOR = 1e-5  # of magnitudes, whose logarithms are taken
MOMENTUM = 0.99  # of the fast Griffin–Lim algorithm (Perraudin, Balazs and Søndergaard, 2013)
LIFTS = 60  # steps from a mel spectrogram back to magnitudes of frequencies


@dataclass
class VocoderConfig:
    """``blocks`` residual convolutions of ``width`` channels before codes become frames, and as many after that.

    Spectrograms have ``mels`` bands of windows of ``window`` samples, 10 ms apart. ``iterations`` are Griffin–Lim's.
    """

    width: int = 256
    blocks: int = 4
    mels: int = 80
    window: int = 1024
    iterations: int = 64


class Spectrogram(nn.Module):
    """Log-mel spectrograms of sounds, and sounds of log-mel spectrograms."""

    def __init__(self, mels: int, window: int):
        super().__init__()
        bank = mel_filter_bank(window // 2 + 1, mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("bank", torch.from_numpy(bank.T).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """(n,) float32 samples to (mels, n // 160 + 1) float32 natural logarithms."""
        return (self.bank @ self._stft(sound).abs()).clamp_min(FLOOR).log()

    def sound(self, logs: Tensor, iterations: int, seed: int = 0) -> Tensor:
        """(mels, T) float32 to (T · 160,) samples by Griffin and Lim's algorithm, from phases of the seed's."""
        magnitude = self.magnitude(logs.exp())
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(magnitude.shape, generator=generator).to(magnitude) * 2 * torch.pi
        spectrum, before = torch.polar(magnitude, phase), torch.zeros((), device=magnitude.device)
        for _ in range(iterations):
            rebuilt = self._stft(self._istft(spectrum))[:, : magnitude.shape[1]]
            ahead = rebuilt + MOMENTUM * (rebuilt - before)
            spectrum, before = magnitude * ahead / ahead.abs().clamp_min(1e-12), rebuilt
        sound = self._istft(spectrum)
        return sound / sound.abs().max().clamp_min(1.0)

    def magnitude(self, mels: Tensor) -> Tensor:
        """(mels, T) to the magnitudes (window // 2 + 1, T) ≥ 0 that come nearest to them (multiplicative updates)."""
        wanted, inner = self.bank.T @ mels, self.bank.T @ self.bank
        found = wanted.clamp_min(FLOOR)
        for _ in range(LIFTS):
            found = found * wanted / (inner @ found).clamp_min(1e-12)
        return found

    def _stft(self, sound: Tensor) -> Tensor:
        return torch.stft(sound, len(self.window), HOP, window=self.window, return_complex=True)

    def _istft(self, spectrum: Tensor) -> Tensor:
        return torch.istft(spectrum, len(self.window), HOP, window=self.window, length=spectrum.shape[1] * HOP)


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.inner = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.outer = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


class Vocoder(nn.Module):
    """Codes (B, N) int64 in [0, K) to log-mel spectrograms (B, mels, N · frames), and these to sounds.

    Args:
        config: see there.
        centres: (K, D) float, what the codes stand for; they belong to the weights and are not trained.
        frames: of 10 ms that a code lasts.
        seed: of the weights.
    """

    def __init__(self, config: VocoderConfig, centres: Tensor, frames: int, seed: int = 0):
        super().__init__()
        self.config, self.frames = config, frames
        self.register_buffer("centres", centres.clone())
        self.spectrogram = Spectrogram(config.mels, config.window)
        dilations = [3 ** (block % 3) for block in range(config.blocks)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter = nn.Linear(centres.shape[1], config.width)
            self.before = nn.Sequential(*(Residual(config.width, d) for d in dilations))
            self.spread = nn.Conv1d(config.width, config.width * frames, 1)
            self.after = nn.Sequential(*(Residual(config.width, d) for d in dilations))
            self.leave = nn.Conv1d(config.width, config.mels, 1)

    def forward(self, codes: Tensor, keep: Tensor) -> Tensor:
        """``keep`` (B, N) bool: which codes are real."""
        x = self.enter(self.centres[codes] * keep[..., None]).transpose(1, 2)
        x = self.spread(self.before(x))
        x = x.unflatten(1, (self.config.width, self.frames)).permute(0, 1, 3, 2).flatten(2)
        return self.leave(self.after(x))

    @torch.no_grad()
    def sounds(self, codes: list[Tensor], seeds: list[int]) -> list[Tensor]:
        """Samples (n,) float32 in [−1, 1] at 16,000 a second of codes (N,) int64, on the CPU; none of no codes."""
        out = []
        for row, seed in zip(codes, seeds, strict=True):
            if not len(row):
                out.append(torch.zeros(0))
                continue
            row = row.to(self.centres.device)[None]
            logs = self(row, torch.ones_like(row, dtype=torch.bool))[0]
            out.append(self.spectrogram.sound(logs.float(), self.config.iterations, seed).cpu())
        return out


class VocoderBatch(NamedTuple):
    """codes and keep (B, N); wanted (B, mels, N · frames) float32; real (B, N · frames) bool, frames of the clips."""

    codes: Tensor
    keep: Tensor
    wanted: Tensor
    real: Tensor


class VocoderLoss(NamedTuple):
    """loss (), the mean absolute error of log-mel magnitudes, in nats."""

    loss: Tensor


class VocoderObjective(nn.Module):
    """What a vocoder is trained to lessen."""

    def __init__(self, vocoder: Vocoder):
        super().__init__()
        self.vocoder = vocoder

    def forward(self, batch: VocoderBatch) -> VocoderLoss:
        error = (self.vocoder(batch.codes, batch.keep).float() - batch.wanted).abs().mean(1)
        return VocoderLoss((error * batch.real).sum() / batch.real.sum().clamp_min(1))


def vocoder_batch(vocoder: Vocoder, codes: Tensor, keep: Tensor, sounds: list[Tensor]) -> VocoderBatch:
    """Codes (B, N) and keep (B, N) of sounds (n,), with what is to be made of them."""
    length = codes.shape[1] * vocoder.frames
    wanted = torch.zeros(len(sounds), vocoder.config.mels, length)
    real = torch.zeros(len(sounds), length, dtype=torch.bool)
    for row, sound in enumerate(sounds):
        found = vocoder.spectrogram(sound)[:, : int(keep[row].sum()) * vocoder.frames]
        wanted[row, :, : found.shape[1]] = found
        real[row, : found.shape[1]] = True
    return VocoderBatch(codes, keep, wanted, real)
