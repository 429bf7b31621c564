from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler

from lavit.renderers.diffusion import (
    DiffusionConfig,
    DiffusionRenderer,
    RendererBatch,
    UNetConfig,
    build_unet,
    draft_inputs,
    training_noise,
)

WIDTH, SIZE, PATCH, GRID = 5, 16, 4, 4
PATCHES, CHANNELS = GRID**2, 3 * PATCH**2
UNET = UNetConfig([8, 16], [False, True], layers=1, context=8, head_width=8, groups=4)
CONFIG = DiffusionConfig(image_size=SIZE, patch=PATCH, unet=UNET, sampling_steps=3)


def renderer(seed: int = 0, **changes) -> DiffusionRenderer:
    """One whose last convolution is not at its start of zeros, so that everything has an influence."""
    made = DiffusionRenderer(dataclasses.replace(CONFIG, **changes), WIDTH, PATCHES, seed).eval()
    torch.nn.init.normal_(made.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    made.draft_weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return made


def features(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed))


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch() -> RendererBatch:
    noise = torch.randn(3, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(2))
    return RendererBatch(features(), images(), noise, torch.tensor([10, 500, 999]), torch.zeros(3).bool())


# --------------------------------------------------------------------------------------------------------------- pixels


def test_folding_keeps_every_pixel_in_its_patch():
    made = renderer()
    folded = made.fold(images())
    assert folded.shape == (3, CHANNELS, GRID, GRID)
    assert torch.equal(torch.nn.functional.pixel_shuffle(folded, PATCH), images())
    block = images()[0, :, 4:8, 8:12]  # the patch in row 1, column 2
    assert sorted(folded[0, :, 1, 2].tolist()) == sorted(block.flatten().tolist())


def test_image_size_must_divide_into_patches():
    with pytest.raises(ValueError, match="decoder.image_size 18 is no multiple of decoder.patch 4"):
        renderer(image_size=18)
    with pytest.raises(ValueError, match="must have one entry a resolution each"):
        build_unet(dataclasses.replace(CONFIG, unet=UNetConfig([8], [False, True])), CHANNELS, GRID)


# ---------------------------------------------------------------------------------------------------------------- draft


def test_draft_inputs_are_patch_mean_and_one():
    given = draft_inputs(features(1))[0]
    assert given.shape == (PATCHES, 2 * WIDTH + 1)
    torch.testing.assert_close(given[3], torch.cat([features(1)[0, 3], features(1)[0].mean(0), torch.ones(1)]))


def test_least_squares_recover_a_known_linear_picture():
    made = renderer()
    truth = torch.randn(2 * WIDTH + 1, CHANNELS, generator=torch.Generator().manual_seed(5))
    batches = []
    for seed in range(12):
        flat = draft_inputs(features(4, seed)) @ truth
        folded = flat.transpose(1, 2).unflatten(2, (GRID, GRID))
        batches.append((features(4, seed), torch.nn.functional.pixel_shuffle(folded, PATCH)))
    made.fit_draft(batches, ridge=1e-6)
    torch.testing.assert_close(made.draft_weight, truth, atol=1e-3, rtol=0)
    torch.testing.assert_close(made.draft(batches[0][0]), made.fold(batches[0][1]), atol=1e-3, rtol=0)


def test_ridge_of_the_draft_is_that_of_the_normal_equations():
    made = renderer()
    made.fit_draft([(features(), images())], ridge=3.0)
    x = draft_inputs(features()).flatten(0, 1).double()
    y = made.fold(images()).flatten(2).transpose(1, 2).flatten(0, 1).double()
    expected = torch.linalg.solve(x.T @ x + 3.0 * torch.eye(2 * WIDTH + 1).double(), x.T @ y)
    torch.testing.assert_close(made.draft_weight.double(), expected, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("draft", [True, False])
def test_loss_is_the_mean_square_of_what_is_predicted(prediction, draft):
    made, given = renderer(prediction=prediction, draft=draft), batch()
    schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    with torch.no_grad():
        out = made(given)
        clean = made.fold(given.images)
        signal = schedule.alphas_cumprod[given.time].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * given.noise
        context = made.project(given.features) + made.position
        picture = made.draft(given.features) if draft else torch.zeros_like(clean)
        seen = torch.cat([noisy, picture], dim=1) if draft else noisy
        predicted = made.unet(seen, given.time, context).sample
    if prediction == "sample":
        expected = (predicted + picture - clean).square().mean()
    else:
        expected = (predicted - given.noise).square().mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.draft.item() == pytest.approx((picture - clean).square().mean().item(), rel=1e-5)


def test_training_starts_from_the_draft():
    made = DiffusionRenderer(CONFIG, WIDTH, PATCHES)
    made.fit_draft([(features(), images())])
    out = made(batch())
    assert out.loss.item() == pytest.approx(out.draft.item(), rel=1e-6)
    out.loss.backward()
    assert made.unet.conv_out.weight.grad.abs().sum() > 0 and not made.draft_weight.requires_grad


def test_every_parameter_learns():
    made = renderer()
    one = batch()
    made(one._replace(drop=torch.tensor([False, True, False]))).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert made.unconditional.grad.abs().sum() > 0 and made.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("draft", [True, False])
def test_a_dropped_condition_hides_the_features(draft):
    made = renderer(draft=draft)
    noisy, time = torch.randn(3, CHANNELS, GRID, GRID), torch.tensor([5, 5, 5])
    drop = torch.tensor([True, True, False])
    with torch.no_grad():
        first, first_draft = made.predict(noisy, time, features(seed=0), drop)
        second, second_draft = made.predict(noisy, time, features(seed=9), drop)
    assert torch.equal(first[:2], second[:2]) and torch.equal(first_draft[:2], second_draft[:2])
    assert (first[2] - second[2]).abs().max() > 1e-4


# --------------------------------------------------------------------------------------------------------------- render


def rendered(made: DiffusionRenderer, seed: int = 0, given=None, **options) -> torch.Tensor:
    given = features() if given is None else given
    return made.render(given, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_rendered_images_are_in_range_and_depend_on_features_and_generator(prediction):
    made = renderer(prediction=prediction)
    first = rendered(made)
    assert first.shape == (3, 3, SIZE, SIZE) and first.dtype == torch.float32
    assert 0 <= first.min() and first.max() <= 1 and first.std() > 0
    assert torch.equal(first, rendered(made))
    assert not torch.equal(first, rendered(made, seed=1))
    assert not torch.equal(first, rendered(made, given=features(seed=4)))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rendered(made)
    assert torch.equal(torch.rand(1), expected), "the global generator is left alone"


def test_guidance_of_one_is_the_condition_and_of_zero_the_unknown_image():
    made = renderer()
    free = rendered(made, guidance=0.0)
    torch.testing.assert_close(free, rendered(made, guidance=0.0, given=features(seed=4)), atol=1e-5, rtol=0)
    assert torch.equal(rendered(made, guidance=CONFIG.guidance), rendered(made))
    at_one, beside = rendered(made, guidance=1.0), rendered(made, guidance=1.0 + 1e-6)
    torch.testing.assert_close(at_one, beside, atol=1e-4, rtol=0)


def test_a_perfect_predictor_is_rendered_as_it_is(monkeypatch):
    """DDIM whose clean image is always the same ends in that image."""
    made = renderer()
    clean = images()
    answer = lambda noisy, time, given, drop: (made.fold(clean).repeat(len(noisy) // 3, 1, 1, 1), None)  # noqa: E731
    monkeypatch.setattr(made, "predict", answer)
    torch.testing.assert_close(rendered(made), (clean + 1) / 2, atol=2e-2, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- noise


def test_training_noise():
    make = lambda seed, **changes: training_noise(  # noqa: E731
        dataclasses.replace(CONFIG, **changes), (2, 3), [torch.Generator().manual_seed(seed + i) for i in range(4000)]
    )
    noise, time, drop = make(0)
    assert noise.shape == (4000, 2, 3) and time.shape == drop.shape == (4000,)
    assert time.dtype == torch.int64 and drop.dtype == torch.bool
    assert 0 <= time.min() and time.max() < CONFIG.timesteps
    assert drop.float().mean().item() == pytest.approx(0.1, abs=0.02)
    level = ((time + 0.5) / CONFIG.timesteps).logit()
    assert level.mean().item() == pytest.approx(1.0, abs=0.1) and level.std().item() == pytest.approx(1.2, abs=0.1)
    assert all(torch.equal(a, b) for a, b in zip(make(0), make(0), strict=True))
    assert not torch.equal(noise[0], make(1)[0][0]) and torch.equal(noise[1], make(1)[0][0]), "one generator a picture"
    assert make(0, time_mean=50.0)[1].max() == CONFIG.timesteps - 1, "a level of one is the last time, not beyond it"


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 3).state_dict()
    torch.manual_seed(2)
    second = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 4).state_dict()
    assert not torch.equal(first["project.weight"], other["project.weight"])
