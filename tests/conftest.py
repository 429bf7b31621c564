"""What several tests use: a tiny system of random weights, whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lavit.pipeline import LaVIT

PATCHES, WIDTH, CODES, ROW = 16, 24, 12, 64
TEXTS = ["a red hat", "a cat", "two dogs that sit"]


@pytest.fixture(scope="session")
def system() -> LaVIT:
    """16 patches of a 64 px image, 12 codes, one block everywhere, pictures of 16 px."""
    # Here, because most tests need none of it.
    import torch

    from lavit.data.text import TrainedTextConfig, train_text_tokenizer
    from lavit.generation import ImagePlan, TextPlan
    from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
    from lavit.pipeline import LaVIT
    from lavit.release import GenerationConfig, LanguageConfig, Parts
    from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
    from lavit.renderers.latents import FoldedConfig, LatentsConfig
    from lavit.renderers.unet import UNetConfig
    from lavit.tokenizers.decoder import FeatureDecoderConfig
    from lavit.tokenizers.encoders import EncoderConfig, LayerConfig, WeightsConfig
    from lavit.tokenizers.merger import MergerConfig
    from lavit.tokenizers.quantizer import QuantizerConfig
    from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig
    from lavit.vocabulary import Vocabulary

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
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # they begin at zero, and every picture would be alike
        for weight in (renderer.unet.conv_out.weight, renderer.draft_weight):
            weight.normal_(std=0.1, generator=generator)
    text_plan, image_plan = TextPlan(max_tokens=4), ImagePlan(min_tokens=2, max_tokens=6, top_k=5)
    generation = GenerationConfig(text_plan, text_plan, image_plan)
    language = LanguageConfig(row=ROW)
    parts = Parts(Tokenizer(config).eval(), model.eval(), renderer.eval(), text, language, generation)
    return LaVIT(parts)


@pytest.fixture(scope="session")
def release(system, tmp_path_factory) -> Path:
    """The folder of a release of the system."""
    folder = tmp_path_factory.mktemp("released") / "tiny"
    system.save_pretrained(folder)
    return folder
