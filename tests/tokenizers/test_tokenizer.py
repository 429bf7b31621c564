from __future__ import annotations

import copy

import pytest
import torch

from lavit.tokenizers.decoder import FeatureDecoderConfig
from lavit.tokenizers.encoders import EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.merger import MergerConfig
from lavit.tokenizers.places import PlacesConfig
from lavit.tokenizers.quantizer import QuantizerConfig
from lavit.tokenizers.selector import EvenConfig, GainConfig, LearnedConfig, SelectionConfig, gumbel_noise
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerBatch, TokenizerConfig

ENCODER = EncoderConfig(
    weights=WeightsConfig(random=0), image_size=64, grid=4, layers=[LayerConfig("blocks.1", 24)], clip=6.0
)
PATCHES, WIDTH, CODES = 16, 24, 12


def tokenizer(seed: int = 0, **changes) -> Tokenizer:
    settings = {
        "encoder": ENCODER,
        "selection": SelectionConfig(learned=LearnedConfig(rho=0.25, rate_weight=3.0)),
        "merger": MergerConfig(width=8, blocks=1, heads=2, mlp=16, position=True),
        "quantizer": QuantizerConfig(codes=CODES, width=4, commitment=0.7),
        "decoder": FeatureDecoderConfig(width=8, blocks=1, heads=2, mlp=16),
    }
    return Tokenizer(TokenizerConfig(**{**settings, **changes}), seed)


@pytest.fixture
def made():
    return tokenizer().eval()


def features(count: int) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def noise(count: int) -> torch.Tensor:
    return gumbel_noise((count, PATCHES, 2), torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------------------------ the loss


def loss_by_hand(made: Tokenizer, given: torch.Tensor, gumbel: torch.Tensor | None) -> dict[str, float]:
    """Eq. 4 image by image and patch by patch, with the commitment term that the paper leaves open."""
    cosines, rates, distances = [], [], []
    for i in range(len(given)):
        one = given[i : i + 1]
        selection = made.select(one, None if gumbel is None else gumbel[i : i + 1])
        merged, keep, _ = made.merger(one, selection)
        words = made.quantizer.project(merged)
        if made.quantize:
            nearest = []
            for unit in words[0]:
                away = [(unit - code).square().sum() for code in made.quantizer.codebook]
                best = min(range(CODES), key=away.__getitem__)
                nearest.append(made.quantizer.codebook[best])
                distances.append(away[best])
            words = torch.stack(nearest)[None]
        rebuilt = made.decoder(words, keep)[0]
        for x, y in zip(one[0], rebuilt, strict=True):
            cosines.append((x @ y) / (x.norm() * y.norm()))
        rates.append(selection.keep.float().mean())
    cosine = torch.stack(cosines).mean()
    rate_loss = torch.stack([(0.25 - rate) ** 2 for rate in rates]).mean()
    commitment = torch.stack(distances).mean() if distances else torch.zeros(())
    loss = 1 - cosine + 3.0 * rate_loss + 0.7 * commitment
    parts = {"loss": loss, "cosine": cosine, "rate": torch.stack(rates).mean(), "commitment": commitment}
    return {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_loss_is_equation_4(made, quantize, noisy):
    made.quantize = quantize
    gumbel = noise(3) if noisy else None
    with torch.no_grad():
        out = made(TokenizerBatch(features(3), gumbel))
        expected = loss_by_hand(made, features(3), gumbel)
    for name, value in expected.items():
        assert getattr(out, name).item() == pytest.approx(value, abs=1e-5), name
    assert out.tokens.item() == pytest.approx(expected["rate"] * PATCHES, abs=1e-4)


def test_the_weights_of_layers_multiply_channels_in_the_loss_alone(made):
    plain = made(TokenizerBatch(features(3), None))
    made.channel_weight[:12] = 3.0
    weighted = made(TokenizerBatch(features(3), None))
    assert weighted.cosine == plain.cosine, "the reported cosine treats channels alike"
    tokens = made.encode_features(features(3))
    x, y = features(3), made.decode(tokens)
    weight = made.channel_weight
    expected = 1 - torch.cosine_similarity(x * weight, y * weight, dim=-1).mean()
    rest = plain.loss - (1 - plain.cosine)
    assert (weighted.loss - rest).item() == pytest.approx(expected.item(), abs=1e-5)


def test_loss_of_pixels_is_that_of_their_features(made):
    with torch.no_grad():
        encoded = made(TokenizerBatch(images(2), None))
        given = made(TokenizerBatch(made.encoder(images(2)), None))
    torch.testing.assert_close(encoded.loss, given.loss, atol=1e-6, rtol=0)


def test_gradient_reaches_every_trained_part(made):
    made.train()
    made(TokenizerBatch(features(4), noise(4))).loss.backward()
    for name, parameter in made.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for part in (made.selector, made.merger, made.quantizer, made.decoder):
        assert any(p.grad.abs().sum() > 0 for p in part.parameters())


def test_rate_loss_pulls_the_kept_share_to_its_target(made):
    made.train()
    made.quantize = False
    made.selector.out[-1].bias.data = torch.tensor([3.0, -3.0])
    optimizer = torch.optim.Adam(made.selector.parameters(), lr=0.02)
    given, generator = features(8), torch.Generator().manual_seed(0)
    rates = []
    for _ in range(80):
        optimizer.zero_grad()
        out = made(TokenizerBatch(given, gumbel_noise((8, PATCHES, 2), generator)))
        out.loss.backward()
        optimizer.step()
        rates.append(out.rate.item())
    assert rates[0] > 0.8
    assert sum(rates[-10:]) / 10 == pytest.approx(0.25, abs=0.1)


# ------------------------------------------------------------------------------------------------- tokens and features


def test_encode_and_decode(made):
    tokens = made.encode(images(3))
    longest = int(tokens.keep.sum(1).max())
    assert tokens.codes.shape == tokens.keep.shape == tokens.position.shape == (3, longest)
    assert tokens.codes.dtype == tokens.position.dtype == torch.int64 and tokens.keep.dtype == torch.bool
    assert tokens.features.shape == (3, longest, 8)
    assert tokens.keep.any(1).all() and not tokens.codes[~tokens.keep].any()
    assert 0 <= tokens.codes.min() and tokens.codes.max() < CODES
    for row, keep in zip(tokens.position, tokens.keep, strict=True):
        assert row[keep].diff().gt(0).all() and row[keep].max() < PATCHES
    rebuilt = made.decode(tokens)
    assert rebuilt.shape == (3, PATCHES, WIDTH) and rebuilt.dtype == torch.float32


def test_features_of_an_image_do_not_depend_on_the_batch(made):
    together = made.encode_features(features(6))
    rebuilt = made.decode(together)
    for start, size in ((0, 1), (1, 2), (3, 3)):
        part = made.encode_features(features(6)[start : start + size])
        for i in range(size):
            keep = together.keep[start + i]
            assert torch.equal(part.codes[i][part.keep[i]], together.codes[start + i][keep])
            assert torch.equal(part.position[i][part.keep[i]], together.position[start + i][keep])
            kept = part.features[i][part.keep[i]]
            torch.testing.assert_close(kept, together.features[start + i][keep], atol=1e-5, rtol=0)
        torch.testing.assert_close(made.decode(part), rebuilt[start : start + size], atol=1e-5, rtol=0)


def test_encoding_is_deterministic_and_moves_nothing():
    made = tokenizer().train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    first, second = made.encode(images(2)), made.encode(images(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.features, second.features)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


@pytest.mark.parametrize("selection", [SelectionConfig(learned=LearnedConfig()), SelectionConfig(even=EvenConfig(5))])
def test_a_budget_sets_the_length(selection):
    made = tokenizer(selection=selection).eval()
    free = made.encode(images(3))
    for budget, count in (({"tokens": 7}, 7), ({"ratio": 0.25}, 4), ({"ratio": 1.0}, PATCHES)):
        tokens = made.encode(images(3), **budget)
        assert tokens.codes.shape == (3, count) and tokens.keep.all() and tokens.position.diff(dim=1).gt(0).all()
    trimmed = made.encode(images(3), at_most=3)
    assert trimmed.keep.sum(1).tolist() == free.keep.sum(1).clamp(max=3).tolist()
    whole = made.encode(images(3), at_most=PATCHES)
    assert torch.equal(whole.codes, free.codes) and torch.equal(whole.position, free.position)
    with pytest.raises(ValueError, match="tokens is 17; give a whole number from 1 to the 16"):
        made.encode(images(3), tokens=17)


def test_the_patches_of_a_budget_are_among_those_of_a_larger_one(made):
    kept = [set(made.encode(images(1), tokens=n).position[0].tolist()) for n in range(1, PATCHES + 1)]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
    importance = made.select(made.encoder(images(1))).importance[0]
    assert kept[0] == {int(importance.argmax())}


def test_a_hundred_calls_give_one_answer(made):
    first = made.encode(images(4))
    for call in range(100):
        torch.manual_seed(call)
        again = made.encode(images(4))
        assert torch.equal(again.codes, first.codes) and torch.equal(again.position, first.position)


def test_codes_alone_decode_like_the_tokens_they_came_from(made):
    tokens = made.encode_features(features(2))
    assert made.lookup(tokens.codes, tokens.keep).features is None
    assert torch.equal(made.decode(made.lookup(tokens.codes, tokens.keep)), made.decode(tokens))
    wider = torch.cat([tokens.codes, torch.full((2, 1), CODES - 1)], dim=1)[:, :PATCHES]
    keep = torch.cat([tokens.keep, torch.zeros(2, 1).bool()], dim=1)[:, :PATCHES]
    torch.testing.assert_close(made.decode(made.lookup(wider, keep)), made.decode(tokens), atol=1e-5, rtol=0)


def test_training_and_encoding_choose_the_same_codes(made):
    tokens = made.encode_features(features(3))
    with torch.no_grad():
        merged, keep, _ = made.merger(features(3), made.select(features(3)))
        quantized = made.quantizer(merged, keep)
    assert torch.equal(quantized.codes, tokens.codes)
    torch.testing.assert_close(made.decode(tokens), made.decoder(quantized.words, keep), atol=1e-6, rtol=0)


def test_even_selection_keeps_the_same_number_everywhere():
    made = tokenizer(selection=SelectionConfig(even=EvenConfig(tokens=5))).eval()
    tokens = made.encode_features(features(3))
    assert made.selector is None and tokens.keep.all() and tokens.codes.shape == (3, 5)
    assert torch.equal(tokens.position[0], tokens.position[1])
    with torch.no_grad():
        out = made(TokenizerBatch(features(3), noise(3)))
    assert out.tokens.item() == 5 and out.rate.item() == pytest.approx(5 / PATCHES)
    assert out.loss.item() == pytest.approx(1 - out.cosine.item() + 0.7 * out.commitment.item(), abs=1e-6)


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = tokenizer(seed=4).state_dict()
    torch.manual_seed(2)
    second, other = tokenizer(seed=4).state_dict(), tokenizer(seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["quantizer.codebook"], other["quantizer.codebook"])
    assert not torch.equal(first["merger.proj_in.weight"], other["merger.proj_in.weight"])


# ------------------------------------------------------------------------------------------------------ gain and places


@pytest.fixture
def placed():
    gain, places = SelectionConfig(gain=GainConfig(rho=0.6, weight=2.0)), PlacesConfig(every=2)
    made = tokenizer(selection=gain, places=places).eval()
    made.selector.calibrate([features(8)])
    return made


def test_words_alone_decode_like_the_tokens_they_came_from_places_included(placed):
    tokens = placed.encode_features(features(4))
    words = placed.words(tokens)
    assert placed.config.vocabulary(0).words == 3 * CODES > words.max() >= CODES
    again = placed.lookup(words, tokens.keep)
    assert torch.equal(again.codes, tokens.codes) and torch.equal(again.position * tokens.keep, tokens.position)
    assert torch.equal(placed.decode(again), placed.decode(tokens))
    assert placed.places.anchors[tokens.position[tokens.keep]].sum() == 4 * 8, "all anchors of all images"


def test_the_loss_of_the_gain_is_its_regression(placed):
    with torch.no_grad():
        out = placed(TokenizerBatch(features(3), None))
        selection = placed.select(features(3))
        rebuilt = placed.decode(placed.encode_features(features(3)))
    error = 1 - torch.cosine_similarity(features(3), rebuilt, dim=-1)
    taken = selection.errors.gather(-1, selection.keep.long()[..., None])[..., 0]
    expected = error.mean() + 2.0 * (taken - error).square().mean() + 0.7 * out.commitment
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_regression_leaves_merger_and_decoder_alone(placed):
    placed.train()
    plain = copy.deepcopy(placed)
    plain.config.selection.gain.weight = 0.0
    for made in (placed, plain):
        made(TokenizerBatch(features(3), noise(3))).loss.backward()
    for name, parameter in placed.named_parameters():
        if not name.startswith(("encoder.", "selector.")):
            torch.testing.assert_close(parameter.grad, dict(plain.named_parameters())[name].grad)
    assert any(p.grad.abs().sum() > 0 for p in placed.selector.parameters())


def test_a_budget_below_the_anchors_can_be_decoded_but_not_written(placed):
    tokens = placed.encode(images(2), tokens=3)
    assert tokens.keep.sum(1).tolist() == [3, 3] and placed.decode(tokens).shape == (2, PATCHES, WIDTH)
    assert placed.places.anchors[tokens.position].all(), "anchors go first"
    with pytest.raises(ValueError, match="keep at least the 8 anchors"):
        placed.words(tokens)


def test_places_need_anchors():
    with pytest.raises(ValueError, match="tokenizer.places needs selection 'gain'"):
        tokenizer(places=PlacesConfig(every=2))
