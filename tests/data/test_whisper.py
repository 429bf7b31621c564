from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lavit.data.whisper import read_ctranslate2, whisper_of

WIDTH, LAYERS = 64, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=30, d_model=WIDTH, num_mel_bins=8, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=10, max_target_positions=6, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def variables_of(model) -> dict[str, np.ndarray]:
    """A model as CTranslate2 has it."""
    state = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    found = {"decoder/num_heads": np.array(1, "<i2"), "decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}
    for side in ("encoder", "decoder"):
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for i in range(LAYERS):
            new, old = f"{side}/layer_{i}", f"{side}.layers.{i}"
            norms |= {f"{new}/ffn/layer_norm": f"{old}.final_layer_norm"}
            norms |= {f"{new}/self_attention/layer_norm": f"{old}.self_attn_layer_norm"}
            stacks = {"self_attention": ("self_attn", ("q", "k", "v"), ("out",))}
            if side == "decoder":
                norms |= {f"{new}/attention/layer_norm": f"{old}.encoder_attn_layer_norm"}
                stacks["attention"] = ("encoder_attn", ("q",), ("k", "v"), ("out",))
            for kind, (inner, *parts) in stacks.items():
                for number, names in enumerate(parts):
                    weights = [state[f"{old}.{inner}.{name}_proj.weight"] for name in names]
                    biases = [state.get(f"{old}.{inner}.{name}_proj.bias", np.zeros(WIDTH, "<f4")) for name in names]
                    found[f"{new}/{kind}/linear_{number}/weight"] = np.concatenate(weights)
                    found[f"{new}/{kind}/linear_{number}/bias"] = np.concatenate(biases)
            for number, name in enumerate(("fc1", "fc2")):
                for part in ("weight", "bias"):
                    found[f"{new}/ffn/linear_{number}/{part}"] = state[f"{old}.{name}.{part}"]
        for new, old in norms.items():
            found[f"{new}/gamma"], found[f"{new}/beta"] = state[f"{old}.weight"], state[f"{old}.bias"]
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            found[f"encoder/{name}/{part}"] = state[f"encoder.{name}.{part}"]
    return found


def written(variables: dict[str, np.ndarray]) -> bytes:
    def text(words: str) -> bytes:
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        kind = {"<f4": 0, "<i2": 2, "<f2": 4}[value.dtype.str]
        out += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", kind, value.nbytes) + value.tobytes()
    return out + struct.pack("<I", 0)


def test_a_file_holds_the_model_that_was_written(model):
    read = whisper_of(read_ctranslate2(io.BytesIO(written(variables_of(model)))))
    mel, ids = torch.randn(2, 8, 20), torch.tensor([[1, 5, 7], [1, 9, 2]])
    with torch.no_grad():
        expected, found = (one(input_features=mel, decoder_input_ids=ids).logits for one in (model, read))
    assert torch.equal(found, expected)
    assert read.config.encoder_layers == LAYERS and read.config.max_source_positions == 10


def test_half_precision_becomes_single(model):
    halves = {name: value.astype("<f2") if value.ndim else value for name, value in variables_of(model).items()}
    read = whisper_of(read_ctranslate2(io.BytesIO(written(halves))))
    weight = read.model.encoder.layers[0].fc1.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, model.model.encoder.layers[0].fc1.weight, atol=1e-3, rtol=1e-3)


def test_what_is_no_whisper_is_said(model):
    whole = written(variables_of(model))
    with pytest.raises(ValueError, match="no CTranslate2 model of version 6"):
        read_ctranslate2(io.BytesIO(b"\x01" + whole[1:]))
    with pytest.raises(ValueError, match="is cut"):
        read_ctranslate2(io.BytesIO(whole[:-2000]))
    variables = variables_of(model)
    del variables["encoder/layer_1/ffn/linear_0/weight"]
    with pytest.raises(ValueError, match="missing .*encoder.layers.1.fc1.weight"):
        whisper_of(variables)
