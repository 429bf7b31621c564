from __future__ import annotations

import math

import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from lavit.metrics.images import (
    Moments,
    checked,
    clip_scores,
    frechet_distance,
    frechet_of_moments,
    mean_psnr,
    moments,
    psnr,
)


def sample(mean, root, count, seed):
    """`count` points whose sample mean is `mean` and whose sample covariance is `root @ root.T`, both exactly."""
    points = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = points - points.mean(0)
    factor = torch.linalg.cholesky(points.T @ points / (count - 1))
    return torch.linalg.solve(factor, points.T).T @ root.T + mean


def test_frechet_distance_of_diagonal_gaussians():
    # |m_a - m_b|^2 + sum (s_a - s_b)^2 for covariances that commute
    a = sample(torch.tensor([0.0, 1, 2]).double(), torch.diag(torch.tensor([1.0, 2, 3]).double()), 50, seed=0)
    b = sample(torch.tensor([1.0, 1, 0]).double(), torch.diag(torch.tensor([2.0, 2, 0.5]).double()), 70, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 2.5**2)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_of_covariances_that_do_not_commute():
    # For 2x2 matrices tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    root_a, root_b = torch.tensor([[2.0, 0], [1, 1]]).double(), torch.tensor([[1.0, 0], [-3, 0.5]]).double()
    a, b = (sample(torch.zeros(2).double(), root, 40, seed=3) for root in (root_a, root_b))
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    product = cov_a @ cov_b
    shared = (product.trace() + 2 * product.det().sqrt()).sqrt()
    assert frechet_distance(a, b) == pytest.approx(float(cov_a.trace() + cov_b.trace() - 2 * shared))


def test_fewer_samples_than_dimensions():
    a = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(64 * 4, rel=1e-5)
    # Two points each, on lines at a right angle: no shared variance, only the traces remain.
    x, y = torch.zeros(2, 9), torch.zeros(2, 9)
    x[:, 0], y[:, 1] = torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 3.0])
    assert frechet_distance(x, y) == pytest.approx(2 + 18)
    # The same on one line: (sqrt 2 - sqrt 18)^2, whichever way around the factors are taken.
    assert frechet_distance(x, 3 * x) == pytest.approx(8)
    assert frechet_distance(x, 3 * x.repeat(20, 1)) == pytest.approx((2**0.5 - (9 * 40 / 39) ** 0.5) ** 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(1, 3), torch.rand(5, 3), "two samples or more"),
        (torch.rand(5, 4), torch.rand(5, 3), r"\(5, 4\) and \(5, 3\)"),
        (torch.full((5, 3), torch.nan), torch.rand(5, 3), "not finite"),
    ],
)
def test_frechet_distance_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def rotated(values, seed):
    """A covariance with these eigenvalues, in axes that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return axes @ torch.diag(values.double()) @ axes.T


def test_moments_with_covariances_that_commute():
    # In the same axes the distance is |m_a - m_b|^2 + sum (sqrt v_a - sqrt v_b)^2.
    a, b = torch.tensor([1.0, 4.0, 9.0, 0.25, 0.0]), torch.tensor([4.0, 1.0, 0.01, 0.25, 2.0])
    means = torch.zeros(5), torch.tensor([1.0, 0, -2, 0, 0])
    found = frechet_of_moments(Moments(means[0].double(), rotated(a, 0)), Moments(means[1].double(), rotated(b, 0)))
    assert found == pytest.approx(5 + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-6)


def library(a, b):
    stats = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (a, b)]
    return fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


@pytest.mark.parametrize(("count", "width"), [(300, 40), (25, 60), (2, 8)])
def test_moments_beside_features_and_beside_the_library(count, width):
    generator = torch.Generator().manual_seed(count)
    mix = torch.randn(width, width, generator=generator)
    a = torch.randn(count, width, generator=generator) @ mix
    b = torch.randn(count + 7, width, generator=generator) + 0.3
    found = frechet_of_moments(moments(a), moments(b))
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert found == pytest.approx(library(moments(a), moments(b)), rel=1e-4)
    assert frechet_of_moments(moments(a), moments(a)) == pytest.approx(0, abs=1e-6 * float(a.double().square().sum()))


def test_moments_are_numpys():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    found = moments(features)
    assert found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.covariance, torch.cov(features.double().T))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(3), torch.eye(4), r"shapes \(3,\) and \(4, 4\) do not go together"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.zeros(2), torch.full((2, 2), torch.nan), "not finite"),
    ],
)
def test_moments_refuse(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        checked(Moments(mean, covariance))
    with pytest.raises(ValueError, match="moments of 2 and of 3 dimensions"):
        frechet_of_moments(Moments(torch.zeros(2), torch.eye(2)), Moments(torch.zeros(3), torch.eye(3)))
    with pytest.raises(ValueError, match="two samples or more"):
        moments(torch.zeros(1, 3))


def test_clip_scores():
    images, texts = torch.tensor([[2.0, 0], [1, 1], [1, 0]]), torch.tensor([[3.0, 0], [1, 0], [-1, 0.1]])
    assert clip_scores(images, texts).tolist() == pytest.approx([100, 100 / 2**0.5, 0])
    with pytest.raises(ValueError, match="a text's for each image's"):
        clip_scores(images, texts[:2])


def test_psnr():
    a = torch.full((3, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    found = psnr(a, b)
    assert found.shape == (3,) and found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.inf, 20, 10 * math.log10(4)], rel=1e-5)
    assert mean_psnr(a, b) == pytest.approx((100 + 20 + 10 * math.log10(4)) / 3, rel=1e-5)


def test_psnr_refuses():
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"bring them to \[0, 1\]"):
        psnr(images, images * 255 + 2)
    with pytest.raises(ValueError, match=r"bring them to \[0, 1\]"):
        psnr(images * torch.nan, images)
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(images, images[:1])
