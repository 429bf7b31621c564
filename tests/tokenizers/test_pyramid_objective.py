from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lavit.renderers.adversary import AdversaryConfig
from lavit.tokenizers import pyramid_objective
from lavit.tokenizers.encoders import Encoder, EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.pyramid_autoencoder import PyramidConfig, PyramidTokenizer, check_pyramid
from lavit.tokenizers.pyramid_objective import (
    PyramidBatch,
    PyramidLossConfig,
    PyramidObjective,
    check_pyramid_loss,
    dynamic_weight,
    semantic_loss,
)
from lavit.tokenizers.relevance import pools, relevance
from lavit.tokenizers.word_codebook import codebook_digest

SHAPE = PyramidConfig(image_size=16, sides=[1, 2, 4, 4], channels=[8, 16], layers=1, groups=4, fold=2, pooled=True)
BOOK = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
WORDS = F.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(4)), dim=-1)
LOSS = PyramidLossConfig(features=0.0, thresholds=[0.98, 0.8], adversary=AdversaryConfig(channels=[4, 8]))


def tokenizer(**settings) -> PyramidTokenizer:
    return PyramidTokenizer(PyramidConfig(**{**SHAPE.__dict__, **settings}), BOOK, pooled=7)


def objective(**settings) -> PyramidObjective:
    return PyramidObjective(tokenizer(), PyramidLossConfig(**{**LOSS.__dict__, **settings}), WORDS)


def batch(layers=(4, 4, 4)) -> PyramidBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    vectors = F.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    return PyramidBatch(images, torch.tensor(layers), torch.rand(3, 7, generator=generator), vectors)


# ------------------------------------------------------------------------------------------------------- the tokenizer


def test_words_of_a_picture_are_decoded_as_they_were_encoded():
    made = tokenizer().eval()
    named = made.name(batch().images, batch().pooled)
    assert named.codes.shape == (3, 37) and made.layers == [(1, 1), (2, 2), (4, 4), (4, 4)]
    assert made.counts == [1, 4, 16, 16]
    for count in (1, 3, 5, 21, 37):
        pixels = made.decode_prefix(named.codes[:, :count])
        assert pixels.shape == (3, 3, 16, 16) and 0 <= pixels.min() and pixels.max() <= 1
    with torch.no_grad():
        latents = made.latents(batch().images, batch().pooled)
        trained = made.pixels(made.quantizer.straight(latents, named, batch().layers))
    torch.testing.assert_close(made.decode_prefix(named.codes), (trained.clamp(-1, 1) + 1) / 2, atol=1e-5, rtol=1e-4)


def test_it_encodes_pictures_of_any_size_with_the_frozen_encoder():
    config = EncoderConfig(weights=WeightsConfig(random=0), image_size=32, grid=4, layers=[LayerConfig("blocks.1", 24)])
    frozen = Encoder(config)
    made = PyramidTokenizer(SHAPE, BOOK, frozen.backbone.head_hidden_size, frozen=frozen).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = made.encode(images)
    small = F.interpolate(images, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(tokens.codes, made.name(small * 2 - 1, frozen.raw_and_head(images)[1]).codes)
    assert tokens.keep.all() and tokens.position[0].tolist() == list(range(37))
    assert not any(name.startswith("_beside") for name in made.state_dict())
    with pytest.raises(ValueError, match="the image encoder was not given"):
        tokenizer().encode(images)
    plain = tokenizer(pooled=False)
    assert plain.whole is None and plain.encode(images).codes.shape == (2, 37)


def test_what_the_whole_picture_is_begins_where_the_coarse_layers_read():
    made, other = tokenizer(), batch()._replace(pooled=batch().pooled.flip(0))
    apart = made.latents(batch().images, batch().pooled) - made.latents(other.images, other.pooled)
    reached = apart.abs().sum((0, 1)).flatten().nonzero().flatten().tolist()
    assert reached == sorted(made.geometry.places[:5].tolist())
    made.latents(batch().images, batch().pooled).sum().backward()
    assert made.whole.of_picture.grad.abs().sum(0).min() > 0, "the other places may come to need it"


@pytest.mark.parametrize("wrong, words", [
    ({"image_size": 32}, "image_size 32 must be the last side 4 × 4"),
    ({"quantizer": "mean"}, "quantizer 'mean' is unknown"),
    ({"groups": 3}, "groups 3 must divide"),
    ({"sides": [3, 4]}, "sides"),
])  # fmt: skip
def test_shapes_that_do_not_fit(wrong, words):
    with pytest.raises(ValueError, match=f"pyramid.model.*{words}"):
        check_pyramid(PyramidConfig(**{**SHAPE.__dict__, **wrong}), "pyramid.model")


# --------------------------------------------------------------------------------------------------- semantic loss


def test_semantic_loss_of_a_small_case():
    """−log softmax(−‖z − e‖²) written out, a mean over candidates, then places, then pictures."""
    read = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(5))
    pool = torch.zeros(2, 20, dtype=torch.bool)
    pool[0, [3, 7]], pool[1, 5] = True, True
    logs = -torch.log_softmax(-(read[:, :, None] - BOOK).square().sum(-1), dim=-1)
    expected = torch.stack([logs[0][:, [3, 7]].mean(), logs[1][:, 5].mean()]).mean()
    assert float(semantic_loss(read, pool, BOOK)) == pytest.approx(float(expected), rel=1e-5)
    at_its_word = BOOK[5].expand(1, 1, 6) * 1.0
    near = semantic_loss(at_its_word, pool[1:], BOOK)
    assert near < semantic_loss(at_its_word, pool[:1], BOOK)


def test_blocks_leave_it_as_it_is(monkeypatch):
    read = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
    pool = torch.eye(20, dtype=torch.bool)[:2]
    whole = semantic_loss(read, pool, BOOK)
    (gradient,) = torch.autograd.grad(whole, read)
    monkeypatch.setattr(pyramid_objective, "AT_ONCE", 4)
    parts = semantic_loss(read, pool, BOOK)
    (again,) = torch.autograd.grad(parts, read)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(again, gradient)


def test_only_layers_with_a_threshold_are_asked_each_with_its_own_pool():
    made = objective()
    named = made.tokenizer.name(batch().images, batch().pooled)
    found = pools(relevance(batch().vectors, WORDS), [0.98, 0.8])
    assert found[1].sum() > found[0].sum()
    layers = named.read.split([1, 4, 16, 16], dim=1)
    expected = (semantic_loss(layers[0], found[0], BOOK) + semantic_loss(layers[1], found[1], BOOK)) / 2
    torch.testing.assert_close(made.semantic(named.read, batch().vectors), expected)


def test_the_dynamic_weight_makes_parts_equal_and_has_no_gradient():
    appearance, semantic = torch.tensor(0.6, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    weight = dynamic_weight(appearance, semantic)
    assert float(weight) == pytest.approx(0.2) and not weight.requires_grad
    (appearance + weight * semantic).backward()
    assert appearance.grad == 1 and float(semantic.grad) == pytest.approx(0.2)


# ---------------------------------------------------------------------------------------------------------- the whole


def test_the_loss_is_the_weighted_sum_of_its_parts():
    made = objective(semantic=0.5)
    out = made(batch())
    appearance = out.error + 0.33 * out.commitment
    adversary = 0.1 * out.generator + out.critic + 1e-4 * out.lecam
    assert float(out.weight) == pytest.approx(float(0.5 * appearance / out.semantic), rel=1e-5)
    assert out.loss.item() == pytest.approx(float(appearance + adversary + out.weight * out.semantic), rel=1e-5)
    assert all(not part.requires_grad for part in out[1:]) and out.features == 0
    none = objective(semantic=0.0)(batch()._replace(vectors=None))
    assert none.semantic == 0 and none.weight == 0


def test_every_weight_learns_but_those_that_are_frozen():
    config = EncoderConfig(weights=WeightsConfig(random=0), image_size=16, grid=2, layers=[LayerConfig("blocks.1", 24)])
    frozen = Encoder(config)
    made = PyramidObjective(tokenizer(), PyramidLossConfig(**{**LOSS.__dict__, "features": 0.1}), WORDS, frozen)
    out = made(batch())
    assert 0 < out.features <= 2
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert all(p.grad is None for p in frozen.parameters()) and not made.tokenizer.quantizer.codebook.requires_grad
    assert not [name for name in made.state_dict() if "backbone" in name or name == "words"]
    known = frozen.standardize(frozen.raw((batch().images + 1) / 2))
    torch.testing.assert_close(made(batch()._replace(seen=known)).features, made(batch()).features)


def test_the_codebook_stays_while_the_autoencoder_learns():
    torch.manual_seed(0)
    made = objective(semantic=0.3, adversary=AdversaryConfig(weight=0.01, channels=[4, 8]))
    frozen, before = codebook_digest(made.tokenizer.quantizer.codebook), copy.deepcopy(made.tokenizer.encoder)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=0.1)
    errors = []
    for _ in range(40):
        out = made(batch())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        made.adversary.move()
        errors.append(out.error.item())
    assert errors[-1] < 0.8 * errors[0]
    assert codebook_digest(made.tokenizer.quantizer.codebook) == frozen == codebook_digest(BOOK)
    assert not torch.equal(before.conv_in.weight, made.tokenizer.encoder.conv_in.weight)


def test_semantic_loss_brings_relevant_words():
    """Where nothing else asks anything, the first layer says the most relevant word of each picture."""
    torch.manual_seed(0)
    made = objective(thresholds=[1.0])
    optimizer = torch.optim.Adam(made.tokenizer.parameters(), lr=1e-2)
    best = relevance(batch().vectors, WORDS).argmax(1)
    for _ in range(100):
        named = made.tokenizer.name(batch().images, batch().pooled)
        optimizer.zero_grad()
        made.semantic(named.read, batch().vectors).backward()
        optimizer.step()
    assert torch.equal(made.tokenizer.name(batch().images, batch().pooled).codes[:, 0], best)


@pytest.mark.parametrize("wrong, words", [
    ({"commitment": -1.0}, "commitment"), ({"features": float("inf")}, "features"), ({"semantic": -0.1}, "semantic"),
    ({"shorter": 1.5}, "shorter"), ({"thresholds": [0.9] * 5}, "thresholds"), ({"thresholds": [1.5]}, "thresholds"),
    ({"thresholds": []}, "thresholds are empty"),
])  # fmt: skip
def test_bad_losses(wrong, words):
    with pytest.raises(ValueError, match=f"pyramid.loss.*{words}"):
        check_pyramid_loss(PyramidLossConfig(**wrong), 4, "pyramid.loss")


def test_it_is_a_module_without_the_frozen_encoder():
    made = PyramidObjective(tokenizer(), LOSS, WORDS, nn.Linear(2, 2))
    assert {name.split(".")[0] for name, _ in made.named_parameters()} == {"tokenizer", "adversary"}


def test_quantization_and_losses_are_exact_in_lower_precision():
    """Under bf16 the codes are those of the latents that there are, and the semantic loss is computed in fp32."""
    made = objective()
    with torch.autocast("cpu", torch.bfloat16):
        latents = made.tokenizer.latents(batch().images, batch().pooled)
        named = made.tokenizer.quantizer(latents)
        out = made(batch())
        loss = made.semantic(named.read, batch().vectors)
    assert torch.equal(named.codes, made.tokenizer.quantizer(latents.float()).codes)
    assert named.read.dtype == loss.dtype == out.loss.dtype == torch.float32
    torch.testing.assert_close(loss, made.semantic(named.read, batch().vectors))
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())
