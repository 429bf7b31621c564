from __future__ import annotations

import math

import pytest
import torch

from lavit.metrics.images import frechet_distance, psnr


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


def test_psnr():
    a = torch.full((3, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    found = psnr(a, b)
    assert found.shape == (3,) and found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.inf, 20, 10 * math.log10(4)], rel=1e-5)


def test_psnr_refuses():
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"bring them to \[0, 1\]"):
        psnr(images, images * 255 + 2)
    with pytest.raises(ValueError, match=r"bring them to \[0, 1\]"):
        psnr(images * torch.nan, images)
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(images, images[:1])
