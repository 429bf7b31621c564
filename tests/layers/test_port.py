from __future__ import annotations

import pytest
import torch

from lavit.layers.port import Port
from lavit.tokenizers.merger import Merger, MergerConfig
from lavit.tokens import Slots

PATCHES, WIDTH, HIDDEN = 6, 5, 8


@pytest.fixture
def merger() -> Merger:
    torch.manual_seed(0)
    return Merger(WIDTH, PATCHES, MergerConfig(width=4, blocks=1, heads=2, mlp=8))


@pytest.fixture
def patches() -> Slots:
    """Two pictures of which two and three patches are kept."""
    keep = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1]], dtype=torch.bool)
    features = torch.randn(2, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))
    return Slots(torch.arange(5), features, keep)


def test_merged_features_are_projected():
    port, features = Port(3, HIDDEN), torch.randn(4, 3)
    assert torch.equal(port(Slots(torch.arange(4), features)), port.proj(features)) and not port.merges


def test_patches_are_merged_picture_by_picture(merger, patches):
    """What is dropped is merged into what is kept, and no picture knows of the other."""
    port = Port(4, HIDDEN, merger)
    out = port(patches)
    assert out.shape == (5, HIDDEN) and port.merges
    for number, rows in ((0, out[:2]), (1, out[2:])):
        alone = Slots(patches.index, patches.features[number : number + 1], patches.keep[number : number + 1])
        torch.testing.assert_close(port(alone), rows, atol=1e-6, rtol=1e-6)
    dropped = patches.features.clone()
    dropped[0, 1] += 1
    changed = port(patches._replace(features=dropped))
    assert (changed[:2] != out[:2]).any() and torch.equal(changed[2:], out[2:])
    out.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in port.proj.parameters())
    assert port.merger.blocks[0].norm1.weight.grad.any()


@pytest.mark.parametrize("merges", [False, True])
def test_nothing_to_read_gives_every_parameter_a_gradient_of_zero(merger, merges):
    port = Port(4, HIDDEN, merger if merges else None)
    out = port(None)
    assert out.shape == (0, HIDDEN)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in port.parameters())


def test_two_layers_and_pixels_that_are_not_merged():
    """As in LLaVA: every patch by itself, through a GELU; of pixels, those that are kept."""
    features = torch.randn(4, WIDTH)
    port = Port(WIDTH, HIDDEN, projector="mlp")
    expected = port.out(torch.nn.functional.gelu(port.proj(features)))
    assert torch.equal(port(Slots(torch.arange(4), features)), expected)

    class Encoder(torch.nn.Module):
        def forward(self, pixels):
            return pixels.flatten(2).transpose(1, 2)

    online = Port(3, HIDDEN, encoder=Encoder())
    pixels, keep = torch.rand(2, 3, 2, 2), torch.ones(2, 4, dtype=torch.bool)
    keep[1, 2] = False
    patches = pixels.flatten(2).transpose(1, 2)[keep]
    assert torch.equal(online(Slots(torch.arange(7), pixels, keep)), online.proj(patches))
    assert not any(name.startswith("encoder") for name in online.state_dict())


def test_an_unknown_projector():
    with pytest.raises(ValueError, match="model.projector 'cubic' is unknown; choose linear or mlp"):
        Port(WIDTH, HIDDEN, projector="cubic")


def test_a_port_gets_what_it_reads(merger, patches):
    with pytest.raises(ValueError, match="the port reads features, and gets the other"):
        Port(WIDTH, HIDDEN)(patches)
    with pytest.raises(ValueError, match="the port reads patches, and gets the other"):
        Port(4, HIDDEN, merger)(Slots(torch.arange(2), torch.ones(2, 4)))
