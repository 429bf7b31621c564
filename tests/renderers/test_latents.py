from __future__ import annotations

import pytest
import torch

from lavit.renderers.latents import FoldedConfig, Latents, LatentsConfig, VAEConfig, new_vae, open_vae

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
CONFIG = VAEConfig([8, 8, 8], latent_channels=4, groups=4)


@pytest.mark.parametrize("patch", [1, 4])
def test_folding_keeps_every_pixel_in_its_patch(patch):
    latents = Latents(LatentsConfig(folded=FoldedConfig(patch)))
    folded = latents.encode(IMAGES)
    assert folded.shape == (2, 3 * patch**2, 16 // patch, 16 // patch)
    torch.testing.assert_close(latents.decode(folded), (IMAGES + 1) / 2)
    block = IMAGES[0, :, patch : 2 * patch, 2 * patch : 3 * patch]  # the patch in row 1, column 2
    assert sorted(folded[0, :, 1, 2].tolist()) == sorted(block.flatten().tolist())
    assert latents.decode(folded * 9).max() == 1 and latents.decode(folded * 9).min() == 0


def test_a_vae_halves_between_its_resolutions():
    config = LatentsConfig(vae=CONFIG)
    assert (config.factor, config.channels) == (4, 4)
    latents = Latents(config, new_vae(CONFIG, 16, seed=0))
    assert latents.encode(IMAGES).shape == (2, 4, 4, 4)
    assert latents.decode(latents.encode(IMAGES)).shape == IMAGES.shape
    assert not latents.encode(IMAGES.requires_grad_()).requires_grad


def test_the_seed_decides_a_new_vae():
    first, same, other = (new_vae(CONFIG, 16, seed).encoder.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_folder_is_opened_where_it_has_the_shape(tmp_path):
    made = new_vae(CONFIG, 16, seed=0)
    made.register_to_config(scaling_factor=0.7)
    made.save_pretrained(tmp_path / "vae")
    opened = open_vae(str(tmp_path / "vae"), CONFIG)
    assert opened.config.scaling_factor == 0.7
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in made.state_dict().items())
    other = VAEConfig([8, 8], latent_channels=3, groups=4)
    said = r"does not fit decoder.model.latents.vae: block_out_channels is \[8, 8, 8\] there and \[8, 8\] here.*latent"
    with pytest.raises(ValueError, match=said):
        open_vae(str(tmp_path / "vae"), other)
    with pytest.raises(ValueError, match="decoder.model.latents.vae.folder: .*/none has no config.json"):
        open_vae(str(tmp_path / "none"), CONFIG)
