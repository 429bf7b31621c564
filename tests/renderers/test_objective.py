from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from lavit.renderers.diffusion import DiffusionConfig
from lavit.renderers.objective import (
    DraftedLoss,
    RendererBatch,
    RendererLoss,
    RendererObjective,
    min_snr_weight,
    training_noise,
)
from tests.renderers.tiny import CONFIG, LARGE, PATCHES, WIDTH, renderer

GRID, CHANNELS = 4, 48


def features(count: int = 3) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fold(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_unshuffle(x, 4)


PREDICTIONS = ["sample", "epsilon", "v_prediction", "flow_prediction"]


class Reader(nn.Module):
    """A frozen tokenizer whose words are the numbers of features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def lookup(self, words, keep):
        return words[:, 0]

    def decode(self, tokens):
        return features(8)[tokens] * self.weight


def objective(**changes) -> RendererObjective:
    if changes.get("prediction") == "flow_prediction":
        changes["sampler"] = "euler"
    return RendererObjective(renderer(**changes), Reader())


def batch(shape=(CHANNELS, GRID, GRID)) -> RendererBatch:
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    words, keep = torch.tensor([[2], [0], [1]]), torch.ones(3, 1).bool()
    return RendererBatch(words, keep, images(), noise, torch.tensor([10, 500, 999]), torch.zeros(3).bool())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("draft", [True, False])
def test_loss_is_the_mean_square_of_what_is_predicted(prediction, draft):
    made, given = objective(prediction=prediction, draft=draft), batch()
    clean, known, time = fold(given.images), features(8)[[2, 0, 1]], given.time
    schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    if prediction == "flow_prediction":
        level = ((time + 1) / 1000).view(-1, 1, 1, 1)
        noisy, target, time = (1 - level) * clean + level * given.noise, given.noise - clean, time + 1
    else:
        noisy = schedule.add_noise(clean, given.noise, time)
        velocity = schedule.get_velocity(clean, given.noise, time)
        target = {"sample": clean, "epsilon": given.noise, "v_prediction": velocity}[prediction]
    one = made.renderer
    with torch.no_grad():
        out = made(given)
        context = one.conditioning.project(known) + one.conditioning.position
        picture = one.draft(known) if draft else torch.zeros_like(clean)
        seen = torch.cat([noisy, picture], dim=1) if draft else noisy
        predicted = one.unet(seen, time.float(), context).sample
    if prediction == "sample":
        predicted = predicted + picture
    assert out.loss.item() == pytest.approx((predicted - target).square().mean().item(), rel=1e-5)
    assert isinstance(out, DraftedLoss if draft else RendererLoss)
    if draft:
        assert out.draft.item() == pytest.approx((picture - clean).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS[:3])
def test_min_snr_weights_make_the_errors_of_all_targets_alike(prediction):
    """By arXiv 2303.09556 an error of the image of size e is weighed min(SNR, γ) e² whatever is predicted."""
    signal = torch.tensor([0.01, 0.5, 0.9, 0.999], dtype=torch.float64)
    ratio = signal / (1 - signal)
    # x_0 = (x − √(1−ᾱ) ε) / √ᾱ and x_0 = √ᾱ x − √(1−ᾱ) v: what an error of the target makes of the image.
    squared = {"sample": torch.ones(4), "epsilon": (1 - signal) / signal, "v_prediction": 1 - signal}[prediction]
    weight = min_snr_weight(signal, 5.0, prediction)
    torch.testing.assert_close(weight / squared, ratio.clamp(max=5.0))
    made, given = objective(prediction=prediction, min_snr=5.0), batch()
    plain, singles = objective(prediction=prediction), []
    with torch.no_grad():
        for i in range(3):
            one = RendererBatch(*(value[i : i + 1] for value in given))
            factor = min_snr_weight(plain.signal[one.time], 5.0, prediction)
            singles.append(plain(one).loss * factor)
        assert made(given).loss.item() == pytest.approx(torch.stack(singles).mean().item(), rel=1e-4)


def test_training_starts_from_the_draft():
    made = objective()
    nn.init.zeros_(made.renderer.unet.conv_out.weight)
    made.renderer.fit_draft([(features(), images())])
    out = made(batch())
    assert out.loss.item() == pytest.approx(out.draft.item(), rel=1e-6)
    out.loss.backward()
    assert made.renderer.unet.conv_out.weight.grad.abs().sum() > 0
    assert not made.renderer.draft_weight.requires_grad


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_every_parameter_learns_and_what_stands_beside_does_not(changes):
    made = objective(**changes)
    one = batch(made.renderer.config.shape)
    made(one._replace(drop=torch.tensor([False, True, False]))).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in made.named_parameters() if "project" in name or "pool" in name)
    assert made._beside[0].weight.grad is None and {name.split(".")[0] for name in made.state_dict()} == {"renderer"}


def test_images_are_encoded_by_the_vae_with_its_scale():
    made = objective(**LARGE, prediction="sample")
    vae = made.renderer.latents.vae
    vae.register_to_config(scaling_factor=3.0)
    latents = made.renderer.latents.encode(images())
    assert latents.shape == (3, 3, 8, 8)
    torch.testing.assert_close(latents, vae.encode(images()).latent_dist.mode() * 3.0)
    back = made.renderer.latents.decode(latents)
    torch.testing.assert_close(back, (vae.decode(latents / 3.0).sample.clamp(-1, 1) + 1) / 2)


def test_bf16_keeps_the_loss():
    made, given = objective(**LARGE), batch((3, 8, 8))
    with torch.no_grad():
        exact = made(given).loss
        with torch.autocast("cpu", torch.bfloat16):
            rough = made(given).loss
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), rel=0.05)


# ---------------------------------------------------------------------------------------------------------------- noise


def test_training_noise():
    config = dataclasses.replace(CONFIG, image_size=8)

    def make(seed: int, **changes):
        generators = [torch.Generator().manual_seed(seed + i) for i in range(4000)]
        return training_noise(dataclasses.replace(config, **changes), generators)

    noise, time, drop = make(0)
    assert noise.shape == (4000, *config.shape) and time.shape == drop.shape == (4000,)
    assert time.dtype == torch.int64 and drop.dtype == torch.bool
    assert 0 <= time.min() and time.max() < CONFIG.timesteps
    assert drop.float().mean().item() == pytest.approx(0.1, abs=0.02)
    level = ((time + 0.5) / CONFIG.timesteps).logit()
    assert level.mean().item() == pytest.approx(1.0, abs=0.1) and level.std().item() == pytest.approx(1.2, abs=0.1)
    assert all(torch.equal(a, b) for a, b in zip(make(0), make(0), strict=True))
    assert not torch.equal(noise[0], noise[1]) and torch.equal(noise[1], make(1)[0][0]), "one generator a picture"
    assert make(0, time_mean=50.0)[1].max() == CONFIG.timesteps - 1, "a level of one is the last time, not beyond it"
    shares = make(0, time_std=None)[1].float().histc(10, 0, 1000) / 4000
    assert shares.min() > 0.08 and shares.max() < 0.12, "all times alike"


def test_defaults_draw_what_the_demo_trains_on():
    config = DiffusionConfig()
    assert config.shape == (192, 8, 8) and config.process.clip
