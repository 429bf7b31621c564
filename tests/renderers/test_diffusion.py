from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL

from lavit.renderers.conditioning import ConditioningConfig, SDConfig, SDXLConfig
from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer, check_diffusion, draft_inputs
from lavit.renderers.latents import FoldedConfig, LatentsConfig, VAEConfig, new_vae
from lavit.renderers.unet import UNetConfig

WIDTH, SIZE, PATCH, GRID = 5, 16, 4, 4
PATCHES, CHANNELS = GRID**2, 3 * PATCH**2
UNET = UNetConfig([8, 16], [False, True], heads=[1, 2], layers=1, groups=4)
FOLDED = LatentsConfig(folded=FoldedConfig(PATCH))
SD = ConditioningConfig(sd=SDConfig(8))
SDXL = ConditioningConfig(sdxl=SDXLConfig([8, 12], heads=3, time=8))
CONFIG = DiffusionConfig(image_size=SIZE, latents=FOLDED, conditioning=SD, unet=UNET, sampling_steps=3)
VAE = LatentsConfig(vae=VAEConfig([8, 8], latent_channels=3, groups=4))
LARGE = {"latents": VAE, "conditioning": SDXL, "draft": False, "sizes": [[16, 16], [12, 20]]}


def renderer(seed: int = 0, **changes) -> DiffusionRenderer:
    """One whose last convolution is not at its start of zeros, so that everything has an influence."""
    config = dataclasses.replace(CONFIG, **changes)
    vae: AutoencoderKL | None = new_vae(config.latents.vae, SIZE, seed=7) if config.latents.vae else None
    made = DiffusionRenderer(config, WIDTH, PATCHES, seed, vae).eval()
    torch.nn.init.normal_(made.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    if config.draft:
        made.draft_weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return made


def features(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed))


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fold(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_unshuffle(x, PATCH)


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
    torch.testing.assert_close(made.draft(batches[0][0]), fold(batches[0][1]), atol=1e-3, rtol=0)
    shown = made.draft_images(batches[0][0])
    torch.testing.assert_close(shown, (batches[0][1].clamp(-1, 1) + 1) / 2, atol=1e-3, rtol=0)


def test_ridge_of_the_draft_is_that_of_the_normal_equations():
    made = renderer()
    made.fit_draft([(features(), images())], ridge=3.0)
    x = draft_inputs(features()).flatten(0, 1).double()
    y = fold(images()).flatten(2).transpose(1, 2).flatten(0, 1).double()
    expected = torch.linalg.solve(x.T @ x + 3.0 * torch.eye(2 * WIDTH + 1).double(), x.T @ y)
    torch.testing.assert_close(made.draft_weight.double(), expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("changes", [{}, {"draft": False}, {"conditioning": SDXL, "draft": False}, LARGE])
def test_a_dropped_condition_hides_the_features(changes):
    made = renderer(**changes)
    noisy, time = torch.randn(3, *made.config.shape), torch.tensor([5, 5, 5])
    drop = torch.tensor([True, True, False])
    with torch.no_grad():
        first, first_draft = made.predict(noisy, time, features(seed=0), drop)
        second, second_draft = made.predict(noisy, time, features(seed=9), drop)
    assert first.shape == noisy.shape and (first_draft is None) == (not made.config.draft)
    assert torch.equal(first[:2], second[:2]) and (first[2] - second[2]).abs().max() > 1e-4
    if made.config.draft:
        assert torch.equal(first_draft[:2], second_draft[:2])


def test_the_size_is_told_to_a_unet_of_the_larger_shape():
    made = renderer(conditioning=SDXL, draft=False)
    given = (torch.randn(1, *made.config.shape), torch.tensor([5]), features(1), torch.tensor([False]))
    with torch.no_grad():
        own, same, other = (made.predict(*given, size)[0] for size in (None, (SIZE, SIZE), (SIZE, 2 * SIZE)))
    assert torch.equal(own, same) and (own - other).abs().max() > 1e-5


def test_the_vae_stands_beside_the_weights():
    made = renderer(**LARGE)
    assert made.latents.vae is not None
    assert {name.split(".")[0] for name in made.state_dict()} == {"unet", "conditioning"}
    assert not any(p.requires_grad for p in made.latents.vae.parameters())


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 3).state_dict()
    torch.manual_seed(2)
    second = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = DiffusionRenderer(CONFIG, WIDTH, PATCHES, 4).state_dict()
    assert not torch.equal(first["conditioning.project.weight"], other["conditioning.project.weight"])


# --------------------------------------------------------------------------------------------------------------- render

EVERY = [
    {"prediction": prediction, "sampler": sampler}
    for prediction in ("sample", "epsilon", "v_prediction", "flow_prediction")
    for sampler in (("euler", "dpm") if prediction == "flow_prediction" else ("ddim", "dpm"))
]


@pytest.mark.parametrize("changes", [*EVERY, LARGE | {"sampler": "dpm", "prediction": "v_prediction"}])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_seed_is_one_picture_whatever_the_batch(changes, guidance):
    made, five, seeds = renderer(**changes), features(5), [3, 1, 4, 1, 5]
    whole = made.render(five, seeds, guidance)
    assert whole.shape == (5, 3, SIZE, SIZE) and whole.dtype == torch.float32
    assert 0 <= whole.min() and whole.max() <= 1 and whole.std() > 0
    for cut in ([slice(i, i + 1) for i in range(5)], [slice(0, 2), slice(2, 5)]):
        parts = torch.cat([made.render(five[part], seeds[part], guidance) for part in cut])
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    assert not torch.allclose(made.render(five[:1], [8], guidance), whole[:1], atol=1e-3)
    assert not torch.allclose(made.render(five[1:2], [3], guidance), whole[:1], atol=1e-3)


def test_rendering_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    renderer().render(features(), [0, 1, 2])
    assert torch.equal(torch.rand(1), expected)


def test_guidance_of_one_is_the_condition_and_of_zero_the_unknown_image():
    made, seeds = renderer(), [0, 1, 2]
    free = made.render(features(), seeds, guidance=0.0)
    torch.testing.assert_close(free, made.render(features(seed=4), seeds, guidance=0.0), atol=1e-5, rtol=0)
    assert torch.equal(made.render(features(), seeds, guidance=CONFIG.guidance), made.render(features(), seeds))
    at_one, beside = (made.render(features(), seeds, guidance=scale) for scale in (1.0, 1.0 + 1e-6))
    torch.testing.assert_close(at_one, beside, atol=1e-4, rtol=0)


def test_steps_and_sampler_may_be_chosen_anew():
    made = renderer()
    own = made.render(features(), [0, 1, 2])
    assert torch.equal(own, made.render(features(), [0, 1, 2], steps=3, sampler="ddim"))
    assert not torch.equal(own, made.render(features(), [0, 1, 2], steps=4))
    assert not torch.equal(own, made.render(features(), [0, 1, 2], sampler="dpm"))
    with pytest.raises(ValueError, match="sampler 'euler' does not go with sample; choose ddim or dpm"):
        made.render(features(), [0, 1, 2], sampler="euler")


def test_sizes_are_those_that_the_configuration_allows():
    made = renderer(**LARGE)
    assert made.render(features(2), [0, 1]).shape == (2, 3, 16, 16)
    assert made.render(features(2), [0, 1], size=(12, 20)).shape == (2, 3, 12, 20)
    with pytest.raises(ValueError, match="no images of 20 × 12; .* allows 16 × 16, 12 × 20 .height × width"):
        made.render(features(2), [0, 1], size=(20, 12))
    with pytest.raises(ValueError, match="no images of 32 × 32; decoder.model allows 16 × 16 "):
        renderer().render(features(2), [0, 1], size=(32, 32))


def test_seeds_are_one_a_picture():
    with pytest.raises(ValueError, match="2 seeds for 3 pictures"):
        renderer().render(features(), [0, 1])


def test_a_renderer_without_its_vae_predicts_but_shows_nothing():
    made = DiffusionRenderer(dataclasses.replace(CONFIG, **LARGE), WIDTH, PATCHES)
    with pytest.raises(ValueError, match="was made without the VAE"):
        made.render(features(1), [0])


def test_settings_are_checked_when_a_renderer_is_made():
    with pytest.raises(ValueError, match="decoder.model.image_size 18: 18 × 18 is not a multiple of .*folded.patch 4"):
        renderer(image_size=18)
    with pytest.raises(ValueError, match="a.sampler 'euler' does not go"):
        check_diffusion(dataclasses.replace(CONFIG, sampler="euler"), PATCHES, "a")
