"""A model that understands pictures and names what it reads in words (arXiv 2403.07720)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lavit.layers.rows import Visual
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM, WordHeadConfig
from lavit.tokens import IGNORE, PackedBatch, Slots
from lavit.training.optimizer import OptimizerConfig, optimizer_for
from lavit.vocabulary import Vocabulary

TEXT, WIDTH, PATCHES = 11, 3, 4
V = Vocabulary(TEXT, 0)


def new_model(fit: str = "model", pseudo: bool = False, weight: float = 1.0) -> UnifiedLM:
    scratch = ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=32)
    config = ModelConfig(LLMConfig(scratch=scratch), port="unmerged", word_head=WordHeadConfig(fit, weight, pseudo))
    return UnifiedLM(config, V, WIDTH).eval()


def batch(texts=((5, 1), (7, 2))) -> PackedBatch:
    """Two pictures of four patches, each followed by a text that is learned, in one row."""
    ids, labels, position, document, index = [], [], [], [], []
    for number, text in enumerate(texts):
        start = len(ids)
        ids += [V.image_begin, *[V.image_begin] * PATCHES, V.image_end, *text]
        labels += [*[IGNORE] * (PATCHES + 1), *text, IGNORE]
        position += range(len(ids) - start)
        document += [number] * (len(ids) - start)
        index += range(start + 1, start + 1 + PATCHES)
    features = torch.randn(len(index), WIDTH, generator=torch.Generator().manual_seed(0))
    rows = (torch.tensor([part]) for part in (ids, labels, position, document))
    return PackedBatch(*rows, {"image": Slots(torch.tensor(index), features)})


def test_visual_words_are_distributions_over_text():
    model = new_model()
    vectors = torch.randn(6, 16)
    words = model.head(Visual(vectors))
    assert words.shape == (6, TEXT) and words.dtype == torch.float32
    torch.testing.assert_close(words.sum(-1), torch.ones(6))
    torch.testing.assert_close(words, F.linear(vectors, model.head.words).softmax(-1))


@pytest.mark.parametrize("fit", ["head", "model"])
def test_the_divergence_is_that_of_the_places_of_pictures_from_what_stands_before_them(fit):
    model, packed = new_model(fit), batch()
    with torch.no_grad():
        states = model.hidden(packed)[0]
        places = packed.slots["image"].index
        predicted = F.linear(states[places - 1], model.head.text).log_softmax(-1)
        named = F.linear(model.port(packed.slots["image"]), model.head.words).log_softmax(-1)
        aim, found = (predicted, named) if fit == "head" else (named, predicted)
        expected = F.kl_div(found, aim, log_target=True, reduction="none").sum(-1)
        out = model(packed)
    assert out.visual.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    assert out.entropy.item() == pytest.approx(-(named.exp() * named).sum(-1).mean().item(), abs=1e-5)
    assert out.loss.item() == pytest.approx(out.text.item() + out.visual.item(), abs=1e-5)
    torch.testing.assert_close(model.visual_words(packed, fit).kl, expected)


def test_other_labels_of_text_change_nothing_of_it():
    model = new_model()
    with torch.no_grad():
        one = model(batch())
        other = model(batch()._replace(labels=torch.where(batch().labels == IGNORE, IGNORE, 3)))
    assert one.visual == other.visual and one.text != other.text


@pytest.mark.parametrize(
    "fit, moved, still", [("head", "head.words", "head.text"), ("model", "head.text", "head.words")]
)
def test_no_gradient_flows_into_the_side_that_is_aimed_at(fit, moved, still):
    """Weighed a million times, what moves is moved by the divergence alone."""
    model = new_model(fit, weight=1e6)
    packed = batch()._replace(labels=torch.full_like(batch().labels, IGNORE))
    model(packed).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients[moved].any()
    assert gradients[still] is None or not gradients[still].any()
    blocks = [gradients[name] for name in gradients if name.startswith("blocks")]
    assert any(g is not None and g.any() for g in blocks) == (fit == "model")


def test_the_head_alone_is_trained_where_it_alone_is_named():
    model = new_model("head").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = optimizer_for(model, OptimizerConfig(trained=["head.words"]))
    for _ in range(2):
        model(batch()).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.words"}


def test_regression_of_the_next_vector_for_comparison():
    model, packed = new_model("vectors"), batch()
    with torch.no_grad():
        before = model.hidden(packed)[0, packed.slots["image"].index - 1]
        expected = F.mse_loss(model.next_vector(before), model.port(packed.slots["image"]))
        out = model(packed)
    assert out.visual.item() == pytest.approx(expected.item(), abs=1e-5) and out.entropy is None
    model(packed).loss.backward()
    assert model.next_vector.weight.grad.any()


def test_pseudo_features_are_means_of_word_vectors():
    model, packed = new_model(pseudo=True), batch()
    slots = packed.slots["image"]
    words = F.linear(model.port(slots), model.head.words).softmax(-1)
    x = model.embed(packed.ids, packed)[0]
    torch.testing.assert_close(x[slots.index], words @ model.embedding.text.weight)
    plain = new_model().embed(packed.ids, packed)[0]
    outside = [place for place in range(packed.ids.shape[1]) if place not in slots.index]
    assert torch.equal(x[outside], plain[outside])


def test_nothing_is_asked_of_pictures_where_nothing_fits():
    model, packed = new_model("nothing"), batch()
    with torch.no_grad():
        out = model(packed)
        bare = model(packed._replace(slots={}, labels=packed.labels))
    assert out.visual is out.entropy is None and out.loss == out.text
    assert bare.visual is None


def test_a_batch_without_pictures_still_gives_every_parameter_a_gradient():
    model = new_model()
    out = model(batch()._replace(slots={}))
    out.loss.backward()
    assert out.visual.item() == 0
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "head.words")


def test_a_model_without_the_head_has_no_visual_words():
    config = replace(ModelConfig(LLMConfig(scratch=ScratchConfig(16, 2, 2, 32, 32))), port="unmerged")
    with pytest.raises(ValueError, match="train one with pretrain.model.word_head"):
        UnifiedLM(config, V, WIDTH).visual_words(batch())
