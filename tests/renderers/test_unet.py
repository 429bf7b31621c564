from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavit.renderers.conditioning import ConditioningConfig, SDConfig, SDXLConfig
from lavit.renderers.unet import UNetConfig, new_unet, open_unet, unet_options

CONFIG = UNetConfig([8, 16], [False, True], heads=[2, 2], layers=1, groups=4)
SD = ConditioningConfig(sd=SDConfig(8))
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    unet = new_unet(unet_options(CONFIG, (4, 4), SD), (8, 8))
    torch.nn.init.normal_(unet.conv_out.weight)
    unet.save_pretrained(tmp_path / "unet")
    # Published folders give one number of heads for all resolutions, and say nothing of what they leave at its default.
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    config["attention_head_dim"] = 2
    del config["transformer_layers_per_block"], config["use_linear_projection"]
    path.write_text(json.dumps(config))
    return tmp_path / "unet"


def test_a_folder_of_the_shape_is_opened_with_its_weights(folder):
    opened = open_unet(str(folder), unet_options(CONFIG, (4, 4), SD))
    assert opened.conv_out.weight.any()
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in load_file(folder / WEIGHTS).items())


def test_weights_of_other_forms_are_opened_and_safetensors_first(folder):
    options, state = unet_options(CONFIG, (4, 4), SD), load_file(folder / WEIGHTS)
    half = {name: value.half() for name, value in state.items()}
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save(zeros, folder / "diffusion_pytorch_model.bin")
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(open_unet(str(folder), options).conv_out.weight, state["conv_out.weight"])
    (folder / WEIGHTS).unlink()
    assert not open_unet(str(folder), options).conv_out.weight.any(), "before a variant"
    (folder / "diffusion_pytorch_model.bin").unlink()
    assert open_unet(str(folder), options).dtype == torch.float32
    opened = open_unet(str(folder), options, dtype=None)
    assert opened.dtype == torch.float16 and torch.equal(opened.conv_out.weight, half["conv_out.weight"])


@pytest.mark.parametrize(
    ("changes", "conditioning", "said"),
    [
        ({"channels": [8, 8]}, SD, r"block_out_channels is \[8, 16\] there and \[8, 8\] here"),
        ({"heads": [1, 2]}, SD, r"attention_head_dim is \[2, 2\] there and \[1, 2\] here"),
        ({"linear": True}, SD, "use_linear_projection is False there and True here"),
        ({"transformers": [1, 2]}, SD, r"transformer_layers_per_block is \[1, 1\] there and \[1, 2\] here"),
        ({"layers": 2, "groups": 8}, SD, "layers_per_block is 1 there and 2 here; norm_num_groups is 4 there and 8"),
        ({}, ConditioningConfig(sd=SDConfig(12)), "cross_attention_dim is 8 there and 12 here"),
        ({}, ConditioningConfig(sdxl=SDXLConfig([4, 4])), "addition_embed_type is None there and text_time here"),
    ],
)
def test_another_shape_is_refused_by_name(folder, changes, conditioning, said):
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=f"does not fit decoder.model.unet: .*{said}"):
        open_unet(str(folder), unet_options(config, (4, 4), conditioning))
    with pytest.raises(ValueError, match="in_channels is 4 there and 9 here"):
        open_unet(str(folder), unet_options(CONFIG, (9, 4), SD))


def test_weights_that_are_missing_or_broken_are_refused(folder):
    options = unet_options(CONFIG, (4, 4), SD)
    state = load_file(folder / WEIGHTS)
    state.pop("conv_in.weight")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing, unexpected or of another shape: \['conv_in.weight'\]"):
        open_unet(str(folder), options)
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_unet(str(folder), options)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="cannot be opened"):
        open_unet(str(folder), options)


def test_a_new_one_gives_zeros():
    unet = new_unet(unet_options(CONFIG, (4, 4), SD), (8, 8))
    out = unet(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 8)).sample
    assert out.shape == (1, 4, 8, 8) and not out.any()
