"""Published weights, by tiny random files in the published names and shapes, against the formulas written out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lavit.experiment import load_experiment
from lavit.tokenizers.encoders import Encoder, EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.official import open_official
from lavit.tokenizers.selector import Selection
from lavit.workspace import Workspace
from tests.published import BLOCKS, CODES, CONFIG, HEADS, SIZE, TOKENIZER, C, D, P, write_tokenizer
from tokenizer import convert

CONFIGS = Path(__file__).parents[2] / "configs" / "lavit"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The three files, and what is in the two that are LaVIT's own."""
    folder = tmp_path_factory.mktemp("visual_tokenizer")
    return folder, *write_tokenizer(folder)


@pytest.fixture
def opened(published):
    return open_official(published[0], CONFIG)[0]


def apply(state, name, x):
    if f"{name}.weight" in state and state[f"{name}.weight"].dim() == 1:
        return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def soft_attention(q, k, v, mask):
    """One head: (N, d), (M, d), (M, d), (N, M) factors."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    weight = torch.exp(scores - scores.max(1, keepdim=True).values) * mask
    return (weight + 1e-6 / len(k)) / (weight.sum(1, keepdim=True) + 1e-6) @ v


def heads(attend, q, k, v, mask):
    parts = [attend(*(x[:, h * (D // HEADS) : (h + 1) * (D // HEADS)] for x in (q, k, v)), mask) for h in range(HEADS)]
    return torch.cat(parts, dim=1)


def run_block(state, name, own, cross, attend, x, context, own_mask, cross_mask):
    q, k, v = apply(state, f"{name}.{own}.qkv", apply(state, f"{name}.norm0", x)).chunk(3, dim=1)
    x = x + apply(state, f"{name}.{own}.proj", heads(attend, q, k, v, own_mask))
    q = apply(state, f"{name}.{cross}.query", apply(state, f"{name}.norm1", x))
    k, v = (apply(state, f"{name}.{cross}.{part}", context) for part in ("key", "value"))
    x = x + apply(state, f"{name}.{cross}.proj", heads(attend, q, k, v, cross_mask))
    inner = F.gelu(apply(state, f"{name}.mlp.fc1", apply(state, f"{name}.norm2", x)))
    return x + apply(state, f"{name}.mlp.fc2", inner)


def merged_of(state, features, keep):
    """(n, D) kept rows: all patches are computed under factor masks, and the kept ones taken afterwards."""
    x = context = apply(state, "causal_encoder.ln_vision", features)
    patches, kept = len(keep), keep.float()
    own = torch.ones(patches, patches).tril() * torch.maximum(kept[None], torch.eye(patches))
    for i in range(BLOCKS):
        name = f"causal_encoder.blocks.{i}"
        x = run_block(state, name, "token_causal_attn", "token_cross_attn", soft_attention, x, context, own,
                      (1 - kept)[None])  # fmt: skip
    return apply(state, "causal_encoder.norm", x)[keep]


def codes_of(state, merged):
    unit = F.normalize(apply(state, "encode_task_layer.2", apply(state, "encode_task_layer.0", merged).tanh()), dim=1)
    return torch.cdist(unit, state["quantize.embedding.weight"]).argmin(1)


def decoded_of(state, words):
    def attend(q, k, v, mask):
        return (q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v

    context = apply(state, "in_proj", words) + state["pos_embed"][0, : len(words)]
    x = state["query_embed"][0]
    for i in range(BLOCKS):
        x = run_block(state, f"blocks.{i}", "self_attn", "cross_attn", attend, x, context, None, None)
    return apply(state, "decode_task_layer.2", apply(state, "decode_task_layer.0", apply(state, "norm", x)).tanh())


@torch.no_grad()
def test_outputs_are_those_of_the_formulas_for_any_keep_mask(opened, published):
    _, encoder, decoder = published
    g = torch.Generator().manual_seed(7)
    features = torch.randn(4, P, D, generator=g)
    keep = torch.rand(4, P, generator=g) < torch.tensor([0.2, 0.5, 0.9, 2.0])[:, None]  # the last keeps all
    keep[0, 3] = True
    tokens = opened.tokens_of(features, Selection(keep, keep.float(), keep.float()))
    rebuilt = opened.decode(tokens)
    for i in range(4):
        merged = merged_of(encoder, features[i], keep[i])
        torch.testing.assert_close(tokens.features[i][tokens.keep[i]], merged, atol=1e-4, rtol=0)
        codes = codes_of(encoder, merged)
        assert torch.equal(tokens.codes[i][tokens.keep[i]], codes)
        expected = decoded_of(decoder, encoder["quantize.embedding.weight"][codes])
        torch.testing.assert_close(rebuilt[i], expected, atol=1e-4, rtol=0)
    products = (opened.quantizer.project(tokens.features) @ opened.quantizer.codebook.T).argmax(-1)
    assert not torch.equal(products[tokens.keep], tokens.codes[tokens.keep]), "lengths matter"


@torch.no_grad()
def test_selector_keeps_by_its_first_column(opened, published):
    _, encoder, _ = published
    features = torch.randn(P, D, generator=torch.Generator().manual_seed(8))
    inner = apply(encoder, "token_predictor.in_conv.1", apply(encoder, "token_predictor.in_conv.0", features))
    inner = F.gelu(inner)
    whole = inner[:, D // 2 :].mean(0, keepdim=True).expand(P, -1)
    x = torch.cat([inner[:, : D // 2], whole], dim=1)
    x = F.gelu(apply(encoder, "token_predictor.out_conv.0", x))
    x = F.gelu(apply(encoder, "token_predictor.out_conv.2", x))
    log_p = apply(encoder, "token_predictor.out_conv.4", x).log_softmax(1)
    torch.testing.assert_close(opened.selector(features[None])[0], log_p, atol=1e-5, rtol=0)
    assert torch.equal(opened.select(features[None]).keep[0], log_p[:, 0] > log_p[:, 1])


def test_what_is_not_used_is_named(published):
    _, unused = open_official(published[0], CONFIG)
    assert list(unused) == [
        "tokenizer_encoder.bin: quantize.cluster_size",
        "tokenizer_decoder.bin: unet_proj.weight",
        "tokenizer_decoder.bin: unet_proj.bias",
    ]


@pytest.fixture
def broken(published, tmp_path):
    """The files again, to be changed."""
    for name in ("eva_vitg_psz14.bin", "tokenizer_encoder.bin", "tokenizer_decoder.bin"):
        (tmp_path / name).write_bytes((published[0] / name).read_bytes())
    return tmp_path


def test_missing_and_misshapen_tensors_are_named(broken, published):
    encoder = dict(published[1])
    del encoder["encode_task_layer.2.bias"]
    encoder["quantize.embedding.weight"] = torch.zeros(CODES, C + 1)
    torch.save(encoder, broken / "tokenizer_encoder.bin")
    with pytest.raises(
        ValueError, match=r"proj\.2\.bias is missing, quantizer\.codebook is \(24, 9\) instead of \(24, 8\)"
    ):
        open_official(broken, CONFIG)


class Evil:
    def __reduce__(self):
        return (print, ("code that came with the weights",))


def test_files_that_are_no_weights(broken, capsys):
    torch.save({"x": Evil()}, broken / "tokenizer_encoder.bin")
    with pytest.raises(ValueError, match=r"tokenizer_encoder\.bin cannot be read as weights"):
        open_official(broken, CONFIG)
    assert "code that came" not in capsys.readouterr().out
    torch.save({"x": 3}, broken / "tokenizer_encoder.bin")
    with pytest.raises(ValueError, match="something else than a dictionary of tensors"):
        open_official(broken, CONFIG)
    for rubbish in (
        b"",
        b"<html>not found</html>",
        b"\x80\x02hello",
        (broken / "eva_vitg_psz14.bin").read_bytes()[:5000],
    ):
        (broken / "tokenizer_encoder.bin").write_bytes(rubbish)
        with pytest.raises(ValueError, match=r"tokenizer_encoder\.bin cannot be read as weights"):
            open_official(broken, CONFIG)
    (broken / "tokenizer_encoder.bin").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer_encoder\.bin; give the folder visual_tokenizer"):
        open_official(broken, CONFIG)


RUN = "run: {run}\ndata: {{sources: [{{folder: {{path: {run}}}}}]}}\ndecoder: {{model: {{draft: false}}}}\n"


def test_conversion_makes_a_run_that_opens_without_the_files(published, tmp_path, capsys):
    config = tmp_path / "official.yaml"
    config.write_text(RUN.format(run=tmp_path / "run") + TOKENIZER)
    convert.main([str(published[0]), str(config)])
    assert "not used: tokenizer_decoder.bin: unet_proj.weight" in capsys.readouterr().out
    experiment = load_experiment(config)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    made, expected = Workspace(experiment, tmp_path / "run").tokenizer(), open_official(published[0], CONFIG)[0]
    ours, theirs = made.encode(images), expected.encode(images)
    assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.features, theirs.features)
    with pytest.raises(SystemExit):
        convert.main([str(published[0])])
    assert "usage: python -m tokenizer.convert" in capsys.readouterr().err


def test_conversion_of_nothing_leaves_no_tokenizer(tmp_path, capsys):
    config = tmp_path / "official.yaml"
    config.write_text(RUN.format(run=tmp_path / "run") + TOKENIZER)
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "nothing"), str(config)])
    assert "give the folder visual_tokenizer" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "tokenizer").glob("*.safetensors"))


@pytest.mark.parametrize("name", ["official.yaml", "official_sdxl.yaml"])
def test_configuration_of_the_published_weights(name):
    config = load_experiment(CONFIGS / name).tokenizer.model
    assert config.merger.soft_mask and not config.decoder.norm_words and not config.selection.learned.calibrated
    assert (config.quantizer.codes, config.quantizer.width, config.merger.width) == (16384, 32, 1408)


@torch.no_grad()
def test_encoder_reads_the_last_block_before_the_final_norm(opened):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    backbone = opened.encoder.backbone
    seen = []
    hook = backbone.norm.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    normalized = (images - opened.encoder.pixel_mean) / opened.encoder.pixel_std
    backbone.forward_features(normalized)
    hook.remove()
    torch.testing.assert_close(opened.encoder(images), seen[0][:, 1:], atol=1e-5, rtol=0)


def test_giant_has_the_published_names_and_count():
    with torch.device("meta"):
        config = EncoderConfig(
            "eva_giant_patch14_clip_224", WeightsConfig(random=0), 224, 16, [LayerConfig("blocks.39", 1408)], clip=0.0
        )
        encoder = Encoder(config, pretrained=False)
    state = encoder.backbone.state_dict()
    assert sum(p.numel() for p in encoder.backbone.parameters()) == 1_012_588_928
    names = {f"blocks.39.attn.{name}" for name in ("q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias")}
    assert {name for name in state if name.startswith("blocks.39.attn")} == names
