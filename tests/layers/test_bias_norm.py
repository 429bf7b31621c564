from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.layers.bias_norm import BIAS, GAIN, add_bias_norm, without_bias_norm
from lavit.placement import offload
from lavit.training.engine import digest

IDS = torch.tensor([[1, 5, 3, 2]])


@pytest.fixture
def pair():
    """A model and the same with biases and gains."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=16)  # fmt: skip
    plain = LlamaForCausalLM(config).eval()
    grown = copy.deepcopy(plain)
    add_bias_norm(grown.model)
    return plain, grown


def moved(model: nn.Module) -> nn.Module:
    for name, value in model.named_parameters():
        if "delta" in name:
            nn.init.normal_(value, std=0.1)
    return model


def test_it_changes_nothing_at_first_and_everything_but_the_new_is_frozen(pair):
    plain, grown = pair
    assert torch.equal(grown(IDS).logits, plain(IDS).logits)
    trained = {name for name, value in grown.model.named_parameters() if value.requires_grad}
    assert trained and all(name.endswith(("delta_bias", "delta_gain")) for name in trained)
    assert len(trained) == 2 * 7 + 2 * 2 + 1, "seven linear layers and two norms a block, and the last norm"


def test_biases_are_added_and_gains_multiply():
    class TinyRMSNorm(nn.RMSNorm):
        pass

    torch.manual_seed(0)
    x, layers = torch.randn(2, 3), nn.Sequential(nn.Linear(3, 4, bias=False), TinyRMSNorm(4))
    plain = [layers[0](x).detach(), layers[1](torch.ones(1, 4)).detach()]
    add_bias_norm(layers)
    layers[0].delta_bias.data.fill_(2)
    layers[1].delta_gain.data.fill_(0.5)
    torch.testing.assert_close(layers[0](x), plain[0] + 2)
    torch.testing.assert_close(layers[1](torch.ones(1, 4)), 1.5 * plain[1])


def test_switched_off_it_is_bit_for_bit_what_it_was(pair):
    plain, grown = pair
    moved(grown)
    assert not torch.equal(grown(IDS).logits, plain(IDS).logits)
    with without_bias_norm(grown):
        assert torch.equal(grown(IDS).logits, plain(IDS).logits)
    assert not torch.equal(grown(IDS).logits, plain(IDS).logits)


def test_what_was_there_is_never_touched(pair):
    plain, grown = pair
    optimizer = torch.optim.AdamW([p for p in grown.parameters() if p.requires_grad], lr=0.1)
    grown(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert digest(grown.model) != digest(plain.model)
    old = plain.model.state_dict()
    kept = {name: value for name, value in grown.model.state_dict().items() if not name.endswith((BIAS, GAIN))}
    assert kept.keys() == old.keys() and all(torch.equal(value, old[name]) for name, value in kept.items())


def test_copies_and_offloaded_models_have_it_too(pair):
    grown = moved(pair[1])
    expected = grown(IDS).logits.detach()
    copied = copy.deepcopy(grown)
    assert torch.equal(copied(IDS).logits, expected)
    moved(grown)
    assert torch.equal(copied(IDS).logits, expected), "a copy has biases of its own"
    offload(copied.model, torch.device("cpu"))
    assert torch.equal(copied(IDS).logits, expected)
