from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lavit.renderers.folder import load_diffusers, save_diffusers
from tests.renderers.tiny import CONFIG, LARGE, PATCHES, WIDTH, renderer


def features(count: int = 3) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))


def test_half_precision_on_disk_and_in_memory(tmp_path):
    made = renderer(**LARGE)
    made.latents.vae.register_to_config(_name_or_path="/home/me/vae")
    save_diffusers(made, tmp_path, torch.float16)
    assert not [path for path in tmp_path.rglob("*.json") if "/home/me" in path.read_text()], (
        "it names no folder of mine"
    )
    for file in tmp_path.rglob("*.safetensors"):
        for name, value in load_file(file).items():
            assert value.dtype == (torch.float16 if value.dim() > 1 else torch.float32), name
    whole = load_diffusers(tmp_path, made.config, WIDTH, PATCHES).render(features(2), [1, 2], 2.0)
    assert (whole - made.render(features(2), [1, 2], 2.0)).abs().mean() < 0.01
    half = load_diffusers(tmp_path, made.config, WIDTH, PATCHES, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    pixels = half.render(features(2), [1, 2], 2.0)
    assert pixels.dtype == torch.float32 and (pixels - whole).abs().mean() < 0.1


@pytest.mark.parametrize("changes", [{}, {"draft": False, "sampler": "dpm"}, LARGE])
def test_diffusers_opens_the_folders_by_itself_and_they_load_back(tmp_path, changes):
    made = renderer(**changes)
    save_diffusers(made, tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet").eval()
    noisy, time, drop = torch.randn(2, *made.config.shape), torch.tensor([7, 900]), torch.tensor([False, True])
    with torch.no_grad():
        context = made.conditioning(features(2), drop, (16, 16))
        seen = noisy
        if made.config.draft:
            seen = torch.cat([noisy, made.draft(features(2)) * ~drop[:, None, None, None]], dim=1)
        found = unet(seen, time, context.states, added_cond_kwargs=context.added).sample
        if made.config.draft:
            found = found + seen[:, noisy.shape[1] :]
        torch.testing.assert_close(found, made.predict(noisy, time, features(2), drop)[0])
    kind = DPMSolverMultistepScheduler if made.config.sampler == "dpm" else DDIMScheduler
    scheduler = kind.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.prediction_type == "sample" and scheduler.config._class_name == kind.__name__
    assert (tmp_path / "vae").is_dir() == (made.latents.vae is not None)
    if made.latents.vae is not None:
        vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
        assert all(torch.equal(v, vae.state_dict()[name]) for name, v in made.latents.vae.state_dict().items())
    assert not any(name.startswith("unet") for name in load_file(tmp_path / "conditioning.safetensors"))
    assert not list(tmp_path.rglob("*.bin"))

    config = dataclasses.replace(CONFIG, **changes)
    opened = load_diffusers(tmp_path, config, WIDTH, PATCHES)
    assert not opened.training
    assert torch.equal(opened.render(features(2), [0, 1]), made.render(features(2), [0, 1]))


def test_what_does_not_fit_is_named(tmp_path):
    save_diffusers(renderer(), tmp_path)
    with pytest.raises(ValueError, match="does not fit decoder.model.unet: in_channels is 96 there and 48 here"):
        load_diffusers(tmp_path, dataclasses.replace(CONFIG, draft=False), WIDTH, PATCHES)
    with pytest.raises(ValueError, match=r"conditioning.project.weight is \(8, 5\) .* draft_weight is"):
        load_diffusers(tmp_path, CONFIG, WIDTH + 1, PATCHES)
    path = tmp_path / "conditioning.safetensors"
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "unconditional" not in name}, path)
    with pytest.raises(ValueError, match="conditioning.unconditional is missing"):
        load_diffusers(tmp_path, CONFIG, WIDTH, PATCHES)
    path.unlink()
    with pytest.raises(ValueError, match="conditioning.safetensors cannot be opened"):
        load_diffusers(tmp_path, CONFIG, WIDTH, PATCHES)
