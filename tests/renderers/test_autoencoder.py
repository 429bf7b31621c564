from __future__ import annotations

import pytest
import torch

from lavit.renderers.autoencoder import (
    AutoencoderBatch,
    AutoencoderConfig,
    AutoencoderObjective,
    measure_scale,
    posterior_noise,
)
from lavit.renderers.latents import VAEConfig, new_vae
from lavit.tokenizers.encoders import Encoder, EncoderConfig, LayerConfig, WeightsConfig

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
SHAPE = (4, 8, 8)


def vae():
    return new_vae(VAEConfig([8, 16], latent_channels=4, groups=4), 16, seed=0)


def batch() -> AutoencoderBatch:
    return AutoencoderBatch(IMAGES, posterior_noise(SHAPE, [torch.Generator().manual_seed(i) for i in range(3)]))


@pytest.mark.parametrize("error", ["l1", "mse"])
def test_loss_is_the_error_of_pixels_and_the_weighted_divergence(error):
    made = AutoencoderObjective(vae(), AutoencoderConfig(error, kl=0.5))
    with torch.no_grad():
        out, posterior = made(batch()), made.vae.encode(IMAGES).latent_dist
        rebuilt = made.vae.decode(posterior.mean + posterior.std * batch().noise).sample
        difference = rebuilt - IMAGES
        pixels = difference.abs().mean() if error == "l1" else difference.square().mean()
        kl = posterior.kl().sum() / IMAGES.numel()
    assert out.error.item() == pytest.approx(pixels.item(), rel=1e-5)
    assert out.kl.item() == pytest.approx(kl.item(), rel=1e-4)
    assert out.loss.item() == pytest.approx((pixels + 0.5 * kl).item(), rel=1e-5) and out.features == 0


def test_the_distance_of_features_reaches_the_vae_and_not_the_encoder():
    config = EncoderConfig(weights=WeightsConfig(random=0), image_size=32, grid=4, layers=[LayerConfig("blocks.1", 24)])
    encoder = Encoder(config)
    with_features = AutoencoderObjective(vae(), AutoencoderConfig(features=1.0), encoder)
    out = with_features(batch())
    plain = AutoencoderObjective(vae(), AutoencoderConfig())(batch())
    assert 0 < out.features <= 2
    assert out.loss.item() == pytest.approx((plain.loss + out.features).item(), rel=1e-5)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in with_features.parameters())
    own, other = vae(), with_features.vae
    AutoencoderObjective(own, AutoencoderConfig())(batch()).loss.backward()
    assert not torch.allclose(own.decoder.conv_out.weight.grad, other.decoder.conv_out.weight.grad)
    assert all(name.startswith("vae.") for name in with_features.state_dict())
    assert encoder.differentiable(IMAGES.new_zeros(1, 3, 32, 32).requires_grad_()).requires_grad
    assert not encoder.raw(IMAGES.new_zeros(1, 3, 32, 32).requires_grad_()).requires_grad


def test_an_autoencoder_learns():
    torch.manual_seed(0)
    made = AutoencoderObjective(vae(), AutoencoderConfig())
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = made(batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_scale_makes_latents_of_size_one():
    made = vae().eval()
    measure_scale(made, [IMAGES[:2], IMAGES[2:]])
    with torch.no_grad():
        latents = made.encode(IMAGES).latent_dist.mean * made.config.scaling_factor
    assert latents.std(correction=0).item() == pytest.approx(1.0, rel=1e-4)


def test_noise_is_of_each_picture_by_itself():
    first, second = (torch.Generator().manual_seed(i) for i in (1, 1))
    assert torch.equal(posterior_noise(SHAPE, [first])[0], posterior_noise(SHAPE, [second])[0])
