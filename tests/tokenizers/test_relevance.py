from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lavit.tokenizers.relevance import (
    Clip,
    RelevanceConfig,
    centred,
    check_relevance,
    fit_alignment,
    in_templates,
    mean_over_templates,
    pools,
    relevance,
)
from tests.tokenizers.tiny_clip import tiny_clip


def test_the_alignment_finds_a_linear_map_and_knows_nothing_of_noise():
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(400, 12, generator=generator) * 3 + 1
    true = torch.randn(12, 8, generator=generator)
    sentences = F.normalize(pooled @ true + 20 * torch.randn(8, generator=generator), dim=-1)
    fitted = fit_alignment(pooled[:300], sentences[:300], 1e-3)
    held = fitted(pooled[300:])
    torch.testing.assert_close(held.norm(dim=-1), torch.ones(100))
    similar = held @ F.normalize(sentences[300:] - fitted.centre, dim=-1).T
    assert float((similar.argmax(1) == torch.arange(100)).float().mean()) > 0.9
    noise = fit_alignment(torch.randn(300, 12, generator=generator), sentences[:300], 1e-3)
    similar = noise(pooled[300:]) @ F.normalize(sentences[300:] - noise.centre, dim=-1).T
    assert float((similar.argmax(1) == torch.arange(100)).float().mean()) < 0.1
    assert fit_alignment(pooled[:300], sentences[:300], 1e6).map.abs().max() < 1e-4, "a ridge draws to zero"


def test_scores_are_in_a_pictures_own_range_and_pools_grow_as_thresholds_fall():
    words = torch.eye(4)
    pictures = F.normalize(torch.tensor([[1.0, 0.5, 0.0, 0.9], [0.0, 0.0, 0.2, 0.1]]), dim=-1)
    scores = relevance(pictures, words)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.5, 0.0, 0.9], [0.0, 0.0, 1.0, 0.5]]))
    first, second, third = pools(scores, [0.98, 0.89, 0.49])
    assert first.tolist() == [[True, False, False, False], [False, False, True, False]]
    assert second[0].tolist() == [True, False, False, True] and third.sum(1).tolist() == [3, 2]
    assert pools(torch.full((1, 3), 0.0), [0.9])[0].any(), "no pool is empty"


def test_templates():
    texts = in_templates(["cat", "dog"], ["{}", "a {}"])
    assert texts == ["cat", "dog", "a cat", "a dog"]
    vectors = torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, 5]])
    assert mean_over_templates(vectors, 2).tolist() == [[2, 0], [0, 3]]
    torch.testing.assert_close(centred(vectors).norm(dim=-1), torch.ones(4))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_of_a_folder(clip):
    model = Clip(str(clip))
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images, texts = model.images([pixels[:2], pixels[2:]]), model.texts(["cat", "a dog"])
    assert model.image_size == 16 and images.shape == (3, 10) and texts.shape == (2, 10)
    torch.testing.assert_close(images, model.images([pixels]))
    whole = CLIPModel.from_pretrained(clip).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    read = model.text(["cat", "a dog"], return_tensors="pt", padding=True)
    out = whole(pixel_values=(pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), **read)
    torch.testing.assert_close(images, out.image_embeds)
    torch.testing.assert_close(texts, out.text_embeds)


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (33, 90), (9, 12)])
def test_pictures_are_shown_as_clips_own_processor_does(clip, size):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (*size[::-1], 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(levels.numpy())
    own = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_normalize=False)
    found = Clip(str(clip)).pixels([picture, picture])
    assert found.shape == (2, 3, 16, 16)
    torch.testing.assert_close(found[1:], own(picture, return_tensors="pt")["pixel_values"])


def test_a_folder_of_another_model_or_of_half_a_clip(clip, tmp_path):
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **size)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"evaluation.clip: .*bert cannot .* \(its model_type is bert\)"):
        Clip(str(tmp_path / "bert"), "evaluation.clip")
    shutil.copytree(clip, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its weights lack visual_projection.weight"):
        Clip(str(tmp_path / "half"))


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened as CLIP"):
        Clip(str(tmp_path))
    with pytest.raises(ValueError, match="pyramid.relevance.clip: no folder nowhere"):
        Clip("nowhere")
    wrong = (({"templates": ["a"]}, "each with one {}"), ({"templates": []}, "give some"),
             ({"ridge": 0.0}, "must be above 0"))  # fmt: skip
    for settings, words in wrong:
        with pytest.raises(ValueError, match=words):
            check_relevance(RelevanceConfig(**settings), "pyramid.relevance")
