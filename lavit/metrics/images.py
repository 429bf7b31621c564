"""Images against images: the Fréchet distance of two sets of features, and PSNR."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets of features (arXiv 1706.08500, eq. 6).

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), covariances unbiased, in float64. It is called FID **only**
    where the features are those of the Inception network that FID is defined with; name it after its features else.
    It falls with the number of samples, so compare figures of equal numbers only.

    a: (N, D), b: (M, D), float, N and M at least 2; fewer samples than dimensions are fine. Returns a number >= 0.
    Errors: ValueError for other shapes, too few samples, values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features {tuple(a.shape)} and {tuple(b.shape)}: give (N, D) and (M, D), two samples or more")
    a, b = a.double(), b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("the features hold values that are not finite: look for where they overflow")
    means = (a.mean(0) - b.mean(0)).square().sum()
    # With C = X'X, tr (C_a C_b)^(1/2) is the sum of the singular values of X_a X_b': no root of a matrix is taken, and
    # singular covariances are no special case.
    a, b = _covariance_factor(a), _covariance_factor(b)
    shared = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(means + a.square().sum() + b.square().sum() - 2 * shared))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of each pair of images; infinite for equal ones.

    a, b: (B, C, H, W) float in [0, 1]. Returns (B,) float64. Errors: ValueError for other shapes or values.
    """
    if a.ndim != 4 or a.shape != b.shape or not a.numel():
        raise ValueError(f"images {tuple(a.shape)} and {tuple(b.shape)}: give two equal shapes (B, C, H, W), not empty")
    for images in (a, b):
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ValueError(f"image values in [{low:g}, {high:g}]: bring them to [0, 1] first")
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return -10 * error.log10()


def _covariance_factor(features: Tensor) -> Tensor:
    """X, (min(N, D), D), with X'X the covariance of the features (N, D)."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R
