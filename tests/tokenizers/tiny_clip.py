"""A CLIPModel of random weights, with a tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

NAMES = ["<end>", "cat", "dog", "a", "<unk>"]


def tiny_clip(folder: Path) -> Path:
    """Write it below ``folder``, for pictures of 16 pixels and vectors of 10 numbers."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(NAMES), "eos_token_id": 0, "bos_token_id": 3, "pad_token_id": 0}
    vision = {**size, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folder)
    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(NAMES)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>", pad_token="<end>").save_pretrained(folder)
    return folder
