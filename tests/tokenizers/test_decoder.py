from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.decoder import FeatureDecoder, FeatureDecoderConfig, cosine


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return FeatureDecoder(4, 3, 6, FeatureDecoderConfig(width=8, blocks=2, heads=2, mlp=16)).eval()


def words(batch: int, count: int) -> torch.Tensor:
    return torch.randn(batch, count, 4, generator=torch.Generator().manual_seed(1))


def test_words_of_any_number_become_all_patches(decoder):
    for count in (1, 5, 9):
        keep = torch.ones(2, count, dtype=torch.bool)
        assert decoder(words(2, count), keep).shape == (2, 9, 6)
    with pytest.raises(ValueError, match="10 visual words for an image of 9 patches"):
        decoder(words(1, 10), torch.ones(1, 10, dtype=torch.bool))


def test_words_that_are_not_kept_have_no_influence(decoder):
    keep = torch.tensor([[True, True, False, False]])
    rubbish = words(1, 4)
    rubbish[:, 2:] += 100
    short = decoder(words(1, 4)[:, :2], keep[:, :2])
    torch.testing.assert_close(decoder(words(1, 4), keep), short, atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder(rubbish, keep), short, atol=1e-5, rtol=0)


def test_every_word_and_its_place_in_the_sequence_count(decoder):
    keep = torch.ones(1, 3, dtype=torch.bool)
    swapped = words(1, 3)[:, [1, 0, 2]]
    assert (decoder(words(1, 3), keep) - decoder(swapped, keep)).abs().max() > 1e-3
    changed = words(1, 3)
    changed[0, 2] += 1
    assert ((decoder(words(1, 3), keep) - decoder(changed, keep)).abs().amax(-1) > 1e-5).all()


def test_gradient_reaches_words_and_parameters(decoder):
    given = words(2, 3).requires_grad_()
    keep = torch.tensor([[True, True, True], [True, False, False]])
    decoder(given, keep).square().sum().backward()
    assert torch.equal(given.grad[1, 1:], torch.zeros(2, 4)) and given.grad[0].abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_known_places_take_the_place_of_the_order():
    torch.manual_seed(0)
    placed = FeatureDecoder(4, 3, 6, FeatureDecoderConfig(width=8, blocks=2, heads=2, mlp=16), places=True).eval()
    keep, position = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[1, 4, 6]])
    turned = [1, 2, 0]
    first, second = placed(words(1, 3), keep, position), placed(words(1, 3)[:, turned], keep, position[:, turned])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    moved = placed(words(1, 3), keep, torch.tensor([[1, 4, 8]]))
    assert ((first - moved).abs().amax(-1) > 1e-5).all()
    with pytest.raises(ValueError, match="needs the positions of its words"):
        placed(words(1, 3), keep)


def test_cosine():
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [0.0, 2.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([1.0, 0.0, 0.0]))
    assert cosine(-a[:1], b[:1]).item() == pytest.approx(-1)
    assert cosine(a.bfloat16(), b.bfloat16()).dtype == torch.float32
