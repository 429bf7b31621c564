"""LaVIT's published tokenizer weights, opened as a :class:`~lavit.tokenizers.tokenizer.Tokenizer`.

The folder is ``visual_tokenizer`` of the release on the Hugging Face hub (``rain1011/LaVIT-7B-v2``):
``eva_vitg_psz14.bin``, ``tokenizer_encoder.bin`` and ``tokenizer_decoder.bin``. They are read without running pickled
code. ``configs/lavit/official.yaml`` has the settings that give the published code's outputs. :mod:`lavit.official`
opens the rest of the release. The real files were never at hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from lavit.tokenizers.encoders import read_state
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from lavit.weights import fill

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
}
DECODER = (
    (r"pos_embed$", "decoder.position"),
    (r"query_embed$", "decoder.query"),
    (r"in_proj\.", "decoder.proj_in."),
    (r"decode_task_layer\.", "decoder.out."),
    (r"(?=blocks\.|norm\.)", "decoder."),
)
INSIDE = (
    (r"\.token_causal_attn\.", ".self_attn."),
    (r"\.token_cross_attn\.", ".cross_attn."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)


def open_official(
    folder: Path, config: TokenizerConfig, decoder: str = "tokenizer_decoder.bin"
) -> tuple[Tokenizer, State]:
    """The tokenizer of the published weights, in evaluation mode and in the dtypes of the files.

    Args:
        folder: ``visual_tokenizer``.
        config: its settings.
        decoder: the file of the feature decoder.

    Returns:
        the tokenizer, and the tensors that it has no use for, by file and name.

    Raises:
        ValueError: a file that is missing or not a plain state dict, and tensors that are missing or of another shape
            than ``config`` says, by name.
    """
    files = FILES | {decoder: DECODER}
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {', '.join(absent)}; give the folder visual_tokenizer of the published model"
        )
    with init_empty_weights():
        tokenizer = Tokenizer(config, pretrained=False)
    own = tokenizer.state_dict()
    state, unused = State(), State()
    for name, rules in files.items():
        found, unknown, origin = renamed(read_state(folder / name), rules)
        unused |= {f"{name}: {key}": value for key, value in unknown.items()}
        unused |= {f"{name}: {origin[key]}": found.pop(key) for key in sorted(found.keys() - own.keys())}
        state |= found
    # Tables of places are published with a leading dimension of one.
    state = {key: value.squeeze(0) if key.startswith("decoder.") else value for key, value in state.items()}
    return fitted(tokenizer, state | unpublished(state, own), folder), unused


def fitted(module: nn.Module, state: State, origin: Path) -> nn.Module:
    """Put just these tensors, as they are, into a module that has no storage; see :func:`fill`."""
    return fill(module, unshared(state), origin, assign=True)


def unshared(state: State) -> State:
    """The tensors, those that are parts of others or one with others copied: safetensors stores neither."""
    out, storages = State(), set()
    for name, value in state.items():
        storage = value.untyped_storage()
        alone = storage.nbytes() == value.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        out[name] = value if alone and value.is_contiguous() else value.clone(memory_format=torch.contiguous_format)
    return out


def unpublished(state: State, own: State) -> State:
    """What only our tokenizer has: threshold, statistics of features, and averages as if all codes were used alike."""
    ours = ("selector.threshold", "encoder.mean", "encoder.std", "quantizer.updates")
    extra = {key: own[key] for key in ours if key in own}
    if "quantizer.codebook" in state:
        codebook = state["quantizer.codebook"].float()
        extra |= {
            "quantizer.count": torch.full((len(codebook),), 1 / len(codebook)),
            "quantizer.total": codebook / len(codebook),
        }
    return extra


def renamed(state: State, rules: tuple[tuple[str, str], ...]) -> tuple[State, State, dict[str, str]]:
    """The tensors under our names, fused projections in three parts; those that no rule knows; whence each came."""
    out, unknown = State(), State()
    origin: dict[str, str] = {}
    for name, value in state.items():
        new = next((ours + name[m.end() :] for theirs, ours in rules if (m := re.match(theirs, name))), None)
        if new is None:
            unknown[name] = value
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
