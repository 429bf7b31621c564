"""LaVIT's published tokenizer weights, opened as a :class:`~lavit.tokenizers.tokenizer.Tokenizer`.

The folder is ``visual_tokenizer`` of the release on the Hugging Face hub (``rain1011/LaVIT-7B-v2``):
``eva_vitg_psz14.bin``, ``tokenizer_encoder.bin`` and ``tokenizer_decoder.bin``. They are read without running pickled
code. ``configs/lavit/official.yaml`` has the settings that give the published code's outputs.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from lavit.tokenizers.encoders import read_state
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig

State = dict[str, Tensor]

# A file's names and ours; what a name begins with decides, and the first that fits counts.
FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "eva_vitg_psz14.bin": ((r"", "encoder.backbone."),),
    "tokenizer_encoder.bin": (
        (r"token_predictor\.in_conv\.0\.", "selector.norm."),
        (r"token_predictor\.in_conv\.1\.", "selector.inner."),
        (r"token_predictor\.out_conv\.", "selector.out."),
        (r"causal_encoder\.ln_vision\.", "merger.norm_in."),
        (r"causal_encoder\.", "merger."),
        (r"encode_task_layer\.", "quantizer.proj."),
        (r"quantize\.embedding\.weight$", "quantizer.codebook"),
    ),
    "tokenizer_decoder.bin": (
        (r"pos_embed$", "decoder.position"),
        (r"query_embed$", "decoder.query"),
        (r"in_proj\.", "decoder.proj_in."),
        (r"decode_task_layer\.", "decoder.out."),
        (r"(?=blocks\.|norm\.)", "decoder."),
    ),
}
INSIDE = (
    (r"\.token_causal_attn\.", ".self_attn."),
    (r"\.token_cross_attn\.", ".cross_attn."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)


def open_official(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of the published weights, in evaluation mode, and the names in the files that it has no use for.

    Raises:
        ValueError: a file that is missing or not a plain state dict, and tensors that are missing or of another shape
            than ``config`` says, by name.
    """
    state: State = {}
    unexpected: list[str] = []
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {', '.join(absent)}; give the folder visual_tokenizer of the published model"
        )
    theirs: dict[str, str] = {}
    for name, rules in FILES.items():
        found, unknown, origin = renamed(read_state(folder / name), rules)
        state |= found
        theirs |= {key: f"{name}: {its}" for key, its in origin.items()}
        unexpected += [f"{name}: {key}" for key in unknown]
    tokenizer = Tokenizer(config, pretrained=False)
    own = tokenizer.state_dict()
    # Tables of places are published with a leading dimension of one.
    state = {key: value.float().squeeze(0) if key.startswith("decoder.") else value for key, value in state.items()}
    unexpected += sorted(theirs[key] for key in state.keys() - own.keys())
    state |= unpublished(state, own)
    problems = [f"{key} is missing" for key in sorted(own.keys() - state.keys())]
    problems += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    if problems:
        raise ValueError(f"{folder} does not fit the configuration: {', '.join(problems)}")
    tokenizer.load_state_dict({key: state[key] for key in own})
    return tokenizer.eval(), unexpected


def unpublished(state: State, own: State) -> State:
    """What only our tokenizer has: threshold, statistics of features, and averages as if all codes were used alike."""
    ours = ("selector.threshold", "encoder.mean", "encoder.std", "quantizer.updates")
    extra = {key: own[key] for key in ours if key in own}
    if "quantizer.codebook" in state:
        codebook = state["quantizer.codebook"]
        extra |= {
            "quantizer.count": torch.full((len(codebook),), 1 / len(codebook)),
            "quantizer.total": codebook / len(codebook),
        }
    return extra


def renamed(state: State, rules: tuple[tuple[str, str], ...]) -> tuple[State, list[str], dict[str, str]]:
    """The tensors under our names, fused projections in three parts; the names that no rule knows; whence each came."""
    out: State = {}
    unknown = []
    origin: dict[str, str] = {}
    for name, value in state.items():
        new = next((ours + name[m.end() :] for theirs, ours in rules if (m := re.match(theirs, name))), None)
        if new is None:
            unknown.append(name)
            continue
        if new.startswith("encoder."):
            out[new], origin[new] = value, name
            continue
        for theirs, ours in INSIDE:
            new = re.sub(theirs, ours, new)
        if fused := re.match(r"(.*\.self_attn\.)qkv\.(weight|bias)$", new):
            for part, third in zip(("query", "key", "value"), value.tensor_split(3), strict=True):
                out[f"{fused[1]}{part}.{fused[2]}"] = third
                origin[f"{fused[1]}{part}.{fused[2]}"] = name
        else:
            out[new], origin[new] = value, name
    return out, unknown, origin
