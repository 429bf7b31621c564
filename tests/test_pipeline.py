from __future__ import annotations

import pytest
import torch

from lavit.data.text import TrainedTextConfig, train_text_tokenizer
from lavit.generation import ImagePlan, TextPlan, log_likelihood
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.pipeline import LaVIT
from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.latents import FoldedConfig, LatentsConfig
from lavit.renderers.unet import UNetConfig
from lavit.tokenizers.decoder import FeatureDecoderConfig
from lavit.tokenizers.encoders import EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.merger import MergerConfig
from lavit.tokenizers.quantizer import QuantizerConfig
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from lavit.tokens import Picture
from lavit.vocabulary import Vocabulary

PATCHES, WIDTH, CODES = 16, 24, 12
PLAN = ImagePlan(min_tokens=2, max_tokens=6, top_k=5)
TEXTS = ["a red hat", "a cat", "two dogs that sit"]


@pytest.fixture(scope="module")
def system() -> LaVIT:
    encoder = EncoderConfig(
        weights=WeightsConfig(random=0), image_size=64, grid=4, layers=[LayerConfig("blocks.1", WIDTH)]
    )
    parts = {"width": 8, "blocks": 1, "heads": 2, "mlp": 16}
    config = TokenizerConfig(encoder, merger=MergerConfig(**parts), quantizer=QuantizerConfig(CODES, 4),
                             decoder=FeatureDecoderConfig(**parts))  # fmt: skip
    text = train_text_tokenizer(TEXTS, TrainedTextConfig(300))
    scratch = ScratchConfig(hidden=16, layers=1, heads=2, mlp=32, max_position=64)
    model = UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), Vocabulary(len(text), CODES), 8)
    unet = UNetConfig([8, 16], [False, False], heads=[1, 2], layers=1, groups=4)
    latents = LatentsConfig(folded=FoldedConfig(4))
    renderer = DiffusionRenderer(DiffusionConfig(16, latents=latents, unet=unet, sampling_steps=2), WIDTH, PATCHES)
    return LaVIT(Tokenizer(config).eval(), model.eval(), renderer.eval(), text, row=64)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def features(count: int) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_have_their_own_number_of_tokens(system):
    seen = system.look(features(5))
    assert len(seen) == 5 and len({len(picture.codes) for picture in seen}) > 1
    for picture in seen:
        assert picture.features.shape == (len(picture.codes), 8) and 1 <= len(picture.codes) <= PATCHES
    alone = system.look(features(5)[2:3])[0]
    assert torch.equal(alone.codes, seen[2].codes)
    torch.testing.assert_close(alone.features, seen[2].features, atol=1e-5, rtol=0)
    assert torch.equal(system.look(images(1))[0].codes, system.look(system.tokenizer.encoder(images(1)))[0].codes)


def test_captions_and_answers_do_not_depend_on_the_batch(system, monkeypatch):
    seen, plan = system.look(features(5)), TextPlan(max_tokens=4)
    captions = system.caption(seen, plan)
    answers = system.answer(seen, [f"what is {i}?" for i in range(5)], plan)
    assert len(captions) == len(answers) == 5 and all(isinstance(text, str) for text in captions + answers)
    monkeypatch.setattr("lavit.pipeline.BATCH", 2)
    assert system.caption(seen, plan) == captions
    assert system.answer(seen[3:4], ["what is 3?"], plan) == answers[3:4]
    with pytest.raises(ValueError, match="shorter"):
        system.answer(seen, ["one question"], plan)


def test_caption_scores_are_log_likelihoods(system, monkeypatch):
    monkeypatch.setattr("lavit.pipeline.BATCH", 2)
    seen = system.look(features(3))
    seen[0] = Picture(seen[0].codes[:3], seen[0].features[:3])
    scores = system.caption_scores(seen, [*TEXTS, ""])
    assert scores.shape == (3, 4) and (scores < 0).all()
    for picture, row in zip(seen, scores, strict=True):
        documents = [system.maker.image_text(picture, text) for text in [*TEXTS, ""]]
        torch.testing.assert_close(row, log_likelihood(system.model, documents, 64), atol=1e-4, rtol=0)


def test_draw_features_render(system, monkeypatch):
    drawn = system.draw(TEXTS, PLAN, generator())
    assert [2 <= len(codes) <= 6 for codes in drawn] == [True] * 3
    assert all(torch.equal(a, b) for a, b in zip(drawn, system.draw(TEXTS, PLAN, generator()), strict=True))
    rebuilt = system.features(drawn)
    assert rebuilt.shape == (3, PATCHES, WIDTH)
    torch.testing.assert_close(system.features(drawn[1:2])[0], rebuilt[1], atol=1e-5, rtol=0)
    pixels = system.render(rebuilt, [5, 6, 7])
    assert pixels.shape == (3, 3, 16, 16) and 0 <= pixels.min() and pixels.max() <= 1
    assert torch.equal(pixels, system.render(rebuilt, [5, 6, 7]))
    monkeypatch.setattr("lavit.pipeline.BATCH", 2)
    torch.testing.assert_close(system.render(rebuilt, [5, 6, 7]), pixels, atol=1e-4, rtol=0)


def test_the_best_drawing_is_the_one_captioned_best(system):
    best = system.draw_best(TEXTS, PLAN, 3, generator())
    every = system.draw([text for text in TEXTS for _ in range(3)], PLAN, generator())
    for i, text in enumerate(TEXTS):
        candidates = every[3 * i : 3 * i + 3]
        seen = system.look(system.features(candidates))
        scores = [system.caption_scores([picture], [text]).item() for picture in seen]
        assert torch.equal(best[i], candidates[scores.index(max(scores))])
    single = system.draw_best(TEXTS, PLAN, 1, generator())
    assert all(torch.equal(a, b) for a, b in zip(single, system.draw(TEXTS, PLAN, generator()), strict=True))
