from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from lavit.layers.lora import LoRAConfig, add_lora

TINY = LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=8)


@pytest.fixture
def blocks() -> nn.Module:
    torch.manual_seed(0)
    return LlamaModel(TINY).eval()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_adapters_add_nothing_at_first_and_their_product_afterwards(blocks):
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    layer = blocks.layers[0].self_attn.q_proj
    weight, before = layer.weight.detach().clone(), blocks(inputs_embeds=x).last_hidden_state
    add_lora(blocks, LoRAConfig(rank=3, alpha=6.0), seed=0)
    assert torch.equal(blocks(inputs_embeds=x).last_hidden_state, before)
    adapted = blocks.layers[0].self_attn.q_proj
    down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    assert down.shape == (3, 16) and up.shape == (16, 3) and not up.any()
    nn.init.normal_(up, generator=torch.Generator().manual_seed(2))
    expected = x @ (weight + 6.0 / 3 * up @ down).T
    torch.testing.assert_close(adapted(x), expected, atol=1e-5, rtol=1e-5)


def test_only_adapters_of_the_named_layers_are_trained(blocks):
    add_lora(blocks, LoRAConfig(names=["layers.1.mlp.*_proj", "layers.0.self_attn.q_proj"]), seed=0)
    names = {name.split(".lora_")[0] for name in trainable(blocks)}
    assert names == {"layers.0.self_attn.q_proj", *(f"layers.1.mlp.{part}_proj" for part in ("gate", "up", "down"))}
    assert all(".lora_" in name for name in trainable(blocks))


def test_the_seed_decides_and_leaves_the_global_generator_alone(blocks):
    other = LlamaModel(TINY)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    add_lora(blocks, LoRAConfig(), seed=3)
    assert torch.equal(torch.rand(1), expected)
    add_lora(other, LoRAConfig(), seed=3)
    pairs = zip(trainable(blocks).items(), trainable(other).items(), strict=True)
    assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": ["*.query"]}, r"model.lora.names: '\*.query' matches no linear layer; there are layers.0.self_attn"),
        ({"rank": 0}, "model.lora.rank is 0; it must be at least 1"),
    ],
)
def test_adapters_that_cannot_be(blocks, settings, said):
    with pytest.raises(ValueError, match=said):
        add_lora(blocks, LoRAConfig(**settings), seed=0)
