"""Tiny random files in the names and shapes of LaVIT's published ones."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lavit.data.text import TrainedTextConfig, train_text_tokenizer
from lavit.renderers.diffusion import DiffusionConfig
from lavit.renderers.latents import vae_options
from lavit.renderers.unet import unet_options
from lavit.tokenizers.decoder import FeatureDecoderConfig
from lavit.tokenizers.encoders import EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.merger import MergerConfig
from lavit.tokenizers.quantizer import QuantizerConfig
from lavit.tokenizers.selector import LearnedConfig, SelectionConfig
from lavit.tokenizers.tokenizer import TokenizerConfig

MODEL, SIZE, GRID, P, D = "eva02_tiny_patch14_224", 56, 4, 16, 192
HEADS, MLP, BLOCKS, CODES, C = 4, 40, 2, 24, 8
HIDDEN, WIDTH, LARGE = 16, 12, [6, 8]  # of the language model; of what the U-Nets read
TEXTS = ["a red hat", "a cat", "two dogs that sit"]
CONFIG = TokenizerConfig(
    encoder=EncoderConfig(MODEL, WeightsConfig(random=0), SIZE, GRID, [LayerConfig("blocks.11", D)], clip=0.0),
    selection=SelectionConfig(learned=LearnedConfig()),
    merger=MergerConfig(D, BLOCKS, HEADS, MLP, soft_mask=True),
    quantizer=QuantizerConfig(CODES, C),
    decoder=FeatureDecoderConfig(D, BLOCKS, HEADS, MLP, norm_words=False),
)

TOKENIZER = f"""
tokenizer:
  cache_features: false
  model:
    encoder: {{model: {MODEL}, weights: {{random: 0}}, image_size: {SIZE}, grid: {GRID}, clip: 0.0,
               layers: [{{name: blocks.11, width: {D}}}]}}
    selection: {{learned: {{}}}}
    merger: {{width: {D}, blocks: {BLOCKS}, heads: {HEADS}, mlp: {MLP}, soft_mask: true}}
    quantizer: {{codes: {CODES}, width: {C}}}
    decoder: {{width: {D}, blocks: {BLOCKS}, heads: {HEADS}, mlp: {MLP}, norm_words: false}}
"""
# The whole model, its pixel decoder with a folder to begin from, as configs/lavit/paper.yaml has one.
WHOLE = f"""
{TOKENIZER}
pretrain: {{row: 128}}
decoder:
  model:
    image_size: 16
    sizes: [[16, 32]]
    latents: {{vae: {{channels: [8, 8], layers: 1, groups: 4, folder: /nowhere/vae}}}}
    draft: false
    prediction: epsilon
    schedule: scaled_linear
    beta_start: 0.00085
    beta_end: 0.012
    sampling_steps: 2
    conditioning: {{sd: {{width: {WIDTH}, positions: false}}}}
    unet: {{channels: [8, 16], cross_attention: [true, false], heads: [1, 2], layers: 1, groups: 4,
            folder: /nowhere/unet}}
evaluation:
  text: {{min_tokens: 8, max_tokens: 36, beams: 2}}
  answer: {{min_tokens: 2, max_tokens: 10, beams: 5, length_penalty: 0.0}}
  image: {{min_tokens: 5, max_tokens: {P}, top_k: 20, guidance: 2.0}}
"""
SDXL = f"{{sdxl: {{widths: {LARGE}, heads: 2, time: 4}}}}"


def linear(name: str, out: int, into: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    weight = torch.randn(out, into, generator=generator) * into**-0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out, generator=generator) * 0.1}


def norm(name: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    noise = torch.randn(2, D, generator=generator) * 0.1
    return {f"{name}.weight": 1 + noise[0], f"{name}.bias": noise[1]}


def block(name: str, own: str, cross: str, g: torch.Generator) -> dict[str, torch.Tensor]:
    state = linear(f"{name}.{own}.qkv", 3 * D, D, g) | linear(f"{name}.{own}.proj", D, D, g)
    for part in ("query", "key", "value", "proj"):
        state |= linear(f"{name}.{cross}.{part}", D, D, g)
    state |= linear(f"{name}.mlp.fc1", MLP, D, g) | linear(f"{name}.mlp.fc2", D, MLP, g)
    return state | norm(f"{name}.norm0", g) | norm(f"{name}.norm1", g) | norm(f"{name}.norm2", g)


def write_tokenizer(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The three files of ``visual_tokenizer``; returns what is in the two that are LaVIT's own."""
    g = torch.Generator().manual_seed(3)
    encoder = norm("token_predictor.in_conv.0", g) | linear("token_predictor.in_conv.1", D, D, g)
    for place, (out, into) in {0: (D // 2, D), 2: (D // 4, D // 2), 4: (2, D // 4)}.items():
        encoder |= linear(f"token_predictor.out_conv.{place}", out, into, g)
    encoder |= merger(g)
    for place, (out, into) in {0: (D, D), 2: (C, D)}.items():
        encoder |= linear(f"encode_task_layer.{place}", out, into, g)
    # Of other lengths than one, so that the distance and the largest product differ.
    encoder["quantize.embedding.weight"] = torch.randn(CODES, C, generator=g)
    encoder["quantize.cluster_size"] = torch.ones(CODES)
    decoder = feature_decoder(g) | linear("unet_proj", WIDTH, D, g)
    torch.manual_seed(5)
    torch.save(timm.create_model(MODEL, img_size=SIZE).state_dict(), folder / "eva_vitg_psz14.bin")
    torch.save(encoder, folder / "tokenizer_encoder.bin")
    torch.save({"model": decoder}, folder / "tokenizer_decoder.bin")
    return encoder, decoder


def merger(g: torch.Generator) -> dict[str, torch.Tensor]:
    state = norm("causal_encoder.ln_vision", g) | norm("causal_encoder.norm", g)
    for i in range(BLOCKS):
        state |= block(f"causal_encoder.blocks.{i}", "token_causal_attn", "token_cross_attn", g)
    return state


def feature_decoder(g: torch.Generator) -> dict[str, torch.Tensor]:
    state = norm("norm", g) | linear("in_proj", D, C, g)
    for i in range(BLOCKS):
        state |= block(f"blocks.{i}", "self_attn", "cross_attn", g)
    for place in (0, 2):
        state |= linear(f"decode_task_layer.{place}", D, D, g)
    return state | {name: torch.randn(1, P, D, generator=g) for name in ("pos_embed", "query_embed")}


def large_decoder() -> dict[str, torch.Tensor]:
    """``highres_tokenizer_decoder.bin``, its pooling as diffusers has it."""
    g = torch.Generator().manual_seed(13)
    last = LARGE[-1]
    state = feature_decoder(g) | linear("unet_proj_1", LARGE[0], D, g) | linear("unet_proj_2", last, D, g)
    for part in ("q_proj", "k_proj", "v_proj"):
        state |= linear(f"unet_attnpool.{part}", last, last, g)
    return state | {"unet_attnpool.positional_embedding": torch.randn(1, last, generator=g)}


def write_published(folder: Path, small: DiffusionConfig, large: DiffusionConfig) -> None:
    """The whole folder, with a pixel decoder of each of the two shapes."""
    for name in ("visual_tokenizer", "language_model", "pixel_decoding", "highres_pixel_decoding"):
        (folder / name).mkdir()
    write_tokenizer(folder / "visual_tokenizer")
    torch.save(large_decoder(), folder / "visual_tokenizer" / "highres_tokenizer_decoder.bin")
    write_language_model(folder / "language_model")
    for name, config in (("pixel_decoding", small), ("highres_pixel_decoding", large)):
        write_pixel_decoder(folder / name, config)
    vector = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(17))
    torch.save(vector, folder / "pixel_decoding" / "uncond_embeddings.bin")


def write_language_model(folder: Path) -> None:
    """A grown LLaMA, its text tokenizer, and ``visual_weight.bin``."""
    text: PreTrainedTokenizerBase = train_text_tokenizer(TEXTS, TrainedTextConfig(300))
    text.save_pretrained(folder)
    torch.manual_seed(19)
    shape = LlamaConfig(
        vocab_size=len(text) + 2 + CODES, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    g = torch.Generator().manual_seed(23)
    torch.save(merger(g) | linear("vit_proj", HIDDEN, D, g), folder / "visual_weight.bin")


def write_pixel_decoder(folder: Path, config: DiffusionConfig) -> None:
    torch.manual_seed(29)
    channels = config.latents.channels
    options = unet_options(config.unet, (channels, channels), config.conditioning)
    UNet2DConditionModel(sample_size=8, **options).save_pretrained(folder / "unet")
    AutoencoderKL(**vae_options(config.latents.vae)).save_pretrained(folder / "vae")
    # As Stable Diffusion's, which says nothing of its prediction.
    schedule = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "beta_end": 0.012, "num_train_timesteps": 1000, "steps_offset": 1}  # fmt: skip
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
