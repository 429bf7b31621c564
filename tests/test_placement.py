from __future__ import annotations

import pytest
import torch
from torch import nn

from lavit import placement
from lavit.pipeline import LaVIT
from lavit.placement import offload, quantize


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Sequential(nn.Linear(128, 64, bias=False)))


@pytest.mark.parametrize(("bits", "bytes_each", "error"), [(8, 1, 0.02), (4, 0.5, 0.25)])
def test_few_bits_take_less_and_compute_nearly_the_same(bits, bytes_each, error):
    pytest.importorskip("bitsandbytes")
    plain, small = network(), network()
    quantize(small, bits, torch.device("cpu"))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = plain(x), small(x)
    off = float((found - expected).norm() / expected.norm())
    assert 0 < off < error
    for ours, theirs in ((small[0], plain[0]), (small[2][0], plain[2][0])):
        assert ours.weight.numel() * ours.weight.element_size() == bytes_each * theirs.weight.numel()
    assert torch.equal(small[0].bias, plain[0].bias)


def test_other_bits_and_a_missing_library_are_said(monkeypatch):
    with pytest.raises(ValueError, match="bits is 5"):
        quantize(network(), 5, torch.device("cpu"))
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        quantize(network(), 8, torch.device("cpu"))


def test_offloaded_weights_wait_elsewhere_and_compute_the_same():
    plain, away = network(), network()
    offload(away, torch.device("cpu"))
    x = torch.randn(8, 64)
    assert torch.equal(away(x), plain(x))
    assert all(parameter.is_meta for parameter in away.parameters()), "they are where they compute all the time"


def test_a_release_opens_in_few_bits_and_offloaded(system, tmp_path):
    system.save_pretrained(tmp_path / "release")
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    away = LaVIT.from_pretrained(tmp_path / "release", "cpu", offload=True)
    assert away.caption(image) == system.caption(image)
    with pytest.raises(ValueError, match="opened offloaded cannot be saved"):
        away.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="bits and offload do not go together"):
        LaVIT.from_pretrained(tmp_path / "release", "cpu", bits=4, offload=True)
    pytest.importorskip("bitsandbytes")
    for bits, name in ((8, "Linear8bitLt"), (4, "Linear4bit")):
        small = LaVIT.from_pretrained(tmp_path / "release", "cpu", bits=bits)
        assert name in {type(part).__name__ for part in small.model.blocks.modules()}
        assert isinstance(small.caption(image), str)
        with pytest.raises(ValueError, match=f"in {bits} bits cannot be saved"):
            small.save_pretrained(tmp_path / "again")
