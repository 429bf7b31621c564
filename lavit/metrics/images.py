"""Images against images: the Fréchet distance of two sets of features, and PSNR; and against texts: the CLIP score."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Moments(NamedTuple):
    """What the Fréchet distance needs of a set of features: mean (D,) and unbiased covariance (D, D), both float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of features (N, D), N at least 2, in float64.

    Errors: ValueError for another shape, too few samples, values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features {tuple(features.shape)}: give (N, D), two samples or more")
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return checked(Moments(mean, centred.T @ centred / (len(features) - 1)))


def checked(found: Moments) -> Moments:
    """The same moments, in float64. Errors: ValueError where they are not those of any set of features."""
    mean, covariance = (value.double() for value in found)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"a mean and a covariance of shapes {shapes} do not go together; they must be (D,) and (D, D)")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("the mean or the covariance holds values that are not finite")
    if not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * float(covariance.abs().max())):
        raise ValueError("the covariance is not symmetric")
    return Moments(mean, covariance)


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """:func:`frechet_distance` of sets of which only mean and covariance are known; both of the same D.

    Errors: ValueError for different D.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and of {len(b.mean)} dimensions: they are of different features")
    means = (a.mean - b.mean).square().sum()
    shared = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance).T).sum()
    return max(0.0, float(means + a.covariance.trace() + b.covariance.trace() - 2 * shared))


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """max(100 · cos, 0) of pairs of CLIP's vectors, each (n, E), as (n,) float64 (arXiv 2104.08718, with torchmetrics'
    weight of 100 in place of 2.5). The score of a set is their mean.

    Errors: ValueError for different shapes.
    """
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(f"vectors {tuple(images.shape)} and {tuple(texts.shape)}: give a text's for each image's")
    return 100 * torch.cosine_similarity(images.double(), texts.double(), dim=-1).clamp_min(0)


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


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """The mean of :func:`psnr` over pairs of images, of which equal ones count as 100 dB: a mean is of numbers."""
    return float(psnr(a, b).clamp(max=100.0).mean())


def _covariance_factor(features: Tensor) -> Tensor:
    """X, (min(N, D), D), with X'X the covariance of the features (N, D)."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def _root(covariance: Tensor) -> Tensor:
    """X, (rank, D), with X'X the covariance; what rounding made of its zeros is left out."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return values[kept].sqrt()[:, None] * vectors.T[kept]
