"""The benchmark of quantizers at a small size: each method learns, and is measured on what it has not seen."""

from __future__ import annotations

import sys

import pytest
import torch

from eval import codebook


@pytest.fixture
def small(monkeypatch):
    for name, value in {"CODES": 64, "BATCH": 128, "START": 512, "HIDDEN": 32, "FAIR": 128 / 64}.items():
        monkeypatch.setattr(codebook, name, value)


def features(seed: int, count: int = 600) -> torch.Tensor:
    """Vectors of 24 numbers around 40 centres."""
    centres = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(40, (count,), generator=generator)
    return (centres[which] + 0.1 * torch.randn(count, 24, generator=generator)).half()


@pytest.mark.parametrize("name", codebook.SETTINGS)
def test_every_method_learns_and_counts(small, name):
    if name != "ours":
        pytest.importorskip("vector_quantize_pytorch")
    levels = {"fsq": {"levels": [4, 4, 4]}}.get(name)
    setting = codebook.SETTINGS[name][0]._replace(lr=5e-3, **({"options": levels} if levels else {}))
    short, long = (codebook.train(name, setting, features(1), steps=steps, plain=20) for steps in (22, 200))
    before, after = (codebook.evaluate(model, features(2)) for model in (short, long))
    assert after["cosine"] > max(0.6, before["cosine"] + 0.1)
    assert 1 / 64 <= after["hit"] <= 1 and 1 <= after["perplexity"] <= 64 * after["hit"]
    assert after["hit"] <= codebook.used(long, torch.cat([features(1), features(2)])) <= 1


def test_peers_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ValueError, match="pip install -r requirements-bench.txt"):
        codebook.method_of("fsq", {})
