"""The published model as a release, by tiny random files in the published names; the real ones were never at hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import AttentionPooling
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lavit.experiment import load_experiment
from lavit.generation import TextPlan
from lavit.official import open_published
from lavit.pipeline import LaVIT
from lavit.release import read_config
from lavit.tokenizers.official import open_official
from lavit.tokens import PackedBatch
from tests.published import CODES, CONFIG, LARGE, SDXL, WHOLE, WIDTH, D, P, large_decoder, write_published
from tokenizer import convert

PICTURE = (np.arange(40 * 30 * 3) % 251).astype(np.uint8).reshape(40, 30, 3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "whole.yaml"
    path.write_text(WHOLE)
    return path


@pytest.fixture(scope="module")
def larger(config):
    """Overrides that ask for the decoder of larger pictures."""
    return [f"decoder.model.conditioning={SDXL}", "decoder.model.unet.linear=true"]


@pytest.fixture(scope="module")
def published(config, larger, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, *(load_experiment(config, how).decoder.model for how in ([], larger)))
    return folder


@pytest.fixture
def copy(published, tmp_path):
    """The folder again, to be changed."""
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture(scope="module")
def folder(published, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "release"
    convert.main([str(published), str(config), "--release", str(out)])
    return out


@pytest.fixture(scope="module")
def lavit(folder):
    return LaVIT.from_pretrained(folder, "cpu")


def refused(folder, config, match, how=()):
    with pytest.raises(ValueError, match=match):
        open_published(folder, load_experiment(config, list(how)))


def test_all_that_a_system_does(lavit):
    assert isinstance(lavit.caption(PICTURE), str) and isinstance(lavit.answer(PICTURE, "what is it?"), str)
    drawing = lavit.draw("a cat", seed=3)
    assert drawing.size == (16, 16) and np.array_equal(drawing, lavit.draw("a cat", seed=3))
    assert not np.array_equal(drawing, lavit.draw("a cat", seed=4))
    assert lavit.draw("a hat", images=PICTURE, candidates=2).size == (16, 16)
    assert lavit.reconstruct(PICTURE).size == (16, 16)
    tokens = lavit.tokens(PICTURE)
    assert len(tokens.codes) == len(tokens.places) <= P and tokens.grid == 4 and int(tokens.codes.max()) < CODES


def test_it_writes_and_draws_as_the_configuration_says(lavit):
    plans = lavit.plans
    assert plans.caption == TextPlan(36, 8, beams=2) and plans.answer == TextPlan(10, 2, beams=5, length_penalty=0.0)
    assert (plans.image.min_tokens, plans.image.top_k, plans.image.guidance, plans.candidates) == (5, 20, 2.0, 1)
    assert lavit.row == 128 and lavit.parts.language.port == "patches"


@torch.no_grad()
def test_logits_are_those_of_the_grown_language_model(lavit, published):
    grown = LlamaForCausalLM.from_pretrained(published / "language_model").eval()
    v = lavit.model.vocabulary
    ids = torch.tensor([[1, 5, 77, v.image_begin, v.first_code, v.size - 1, v.first_code + 9, v.image_end, 3, 200]])
    place = torch.arange(ids.shape[1])[None]
    batch = PackedBatch(ids, torch.full_like(ids, -100), place, torch.zeros_like(ids), {})
    found = lavit.model.head(lavit.model.hidden(batch))
    assert found.shape[-1] == grown.config.vocab_size == len(lavit.text) + 2 + CODES
    torch.testing.assert_close(found, grown(input_ids=ids).logits, atol=1e-5, rtol=0)
    assert found.std() > 0.1


def test_the_port_has_a_merger_of_its_own(lavit, published, copy):
    """Its weights are those that the tokenizer would have, had its file the port's merger."""
    visual = torch.load(published / "language_model" / "visual_weight.bin", weights_only=True)
    encoder = copy / "visual_tokenizer" / "tokenizer_encoder.bin"
    its = {name: value for name, value in visual.items() if name.startswith("causal_encoder.")}
    torch.save(torch.load(encoder, weights_only=True) | its, encoder)
    expected = open_official(copy / "visual_tokenizer", CONFIG)[0].merger.state_dict()
    port, own = lavit.model.port, lavit.tokenizer.merger.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in port.merger.state_dict().items())
    assert not torch.equal(own["norm.weight"], expected["norm.weight"])
    assert torch.equal(port.proj.weight, visual["vit_proj.weight"])
    assert torch.equal(port.proj.bias, visual["vit_proj.bias"])


@torch.no_grad()
def test_the_unet_reads_the_projection_and_the_unconditional_vector(lavit, published):
    decoder = torch.load(published / "visual_tokenizer" / "tokenizer_decoder.bin", weights_only=True)["model"]
    vector = torch.load(published / "pixel_decoding" / "uncond_embeddings.bin", weights_only=True)
    features = torch.randn(2, P, D, generator=torch.Generator().manual_seed(1))
    states, added = lavit.renderer.conditioning(features, torch.tensor([False, True]), (16, 16))
    expected = features[0] @ decoder["unet_proj.weight"].T + decoder["unet_proj.bias"]
    torch.testing.assert_close(states[0], expected)
    assert torch.equal(states[1], vector[0].expand(P, -1)) and added is None
    unet = UNet2DConditionModel.from_pretrained(published / "pixel_decoding" / "unet").state_dict()
    vae = AutoencoderKL.from_pretrained(published / "pixel_decoding" / "vae").state_dict()
    for found, its in ((lavit.renderer.unet, unet), (lavit.renderer.latents.vae, vae)):
        assert all(torch.equal(value, its[name]) for name, value in found.state_dict().items())


@torch.no_grad()
def test_larger_pictures_have_their_own_feature_decoder_and_pooling(published, config, larger, lavit, tmp_path):
    convert.main([str(published), str(config), "--release", str(tmp_path / "large"), *larger])
    large = LaVIT.from_pretrained(tmp_path / "large", "cpu")
    assert large.draw("a cat").size == (16, 16) and large.reconstruct(PICTURE).size == (16, 16)
    features = large.features([large.tokens(PICTURE).words])
    assert large.renderer.render(features, [0], size=(16, 32)).shape == (1, 3, 16, 32)
    assert large.caption(PICTURE) == lavit.caption(PICTURE), "what is read is the same"
    assert not torch.equal(features, lavit.features([large.tokens(PICTURE).words])), "what becomes of it is not"
    state = large_decoder()
    pooling = AttentionPooling(2, LARGE[-1])
    prefix = "unet_attnpool."
    pooling.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    states, added = large.renderer.conditioning(features, torch.tensor([False]), (16, 16))
    parts = [features @ state[f"unet_proj_{i}.weight"].T + state[f"unet_proj_{i}.bias"] for i in (1, 2)]
    torch.testing.assert_close(states, torch.cat(parts, dim=-1))
    torch.testing.assert_close(added["text_embeds"], pooling(parts[1]), atol=1e-5, rtol=0)


def test_what_is_not_used_is_named_and_no_run_is_made(published, config, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert.main([str(published), str(config), "--release", "out"])
    told = capsys.readouterr().out.splitlines()
    assert told == ["not used: tokenizer_encoder.bin: quantize.cluster_size", "out is ready"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_config(tmp_path / "out") == read_config(folder), "the same files give the same release"
    made = {path.rpartition(".")[2] for path in read_config(folder).files}
    assert made <= {"json", "safetensors", "jinja"} and "/nowhere" not in (folder / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        convert.main([str(published), str(config), "--release", "out"])
    assert "is there already" in capsys.readouterr().err


def halve(state):
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def saved_otherwise(folder):
    """Half precision; parts and pickled files in place of safetensors; what older versions of transformers stored."""
    language = folder / "language_model"
    state = halve(load_file(language / "model.safetensors"))
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(state)
    parts = {f"pytorch_model-0000{i}-of-00002.bin": names[i - 1 :: 2] for i in (1, 2)}
    for file, its in parts.items():
        torch.save({name: state[name] for name in its}, language / file)
    index = {"weight_map": {name: file for file, its in parts.items() for name in its}}
    (language / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (language / "model.safetensors").unlink()
    unet, vae = (folder / "pixel_decoding" / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    save_file(halve(load_file(unet)), unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    torch.save(halve(load_file(vae)), vae.with_suffix(".bin"))
    unet.unlink()
    vae.unlink()
    visual = torch.load(language / "visual_weight.bin", weights_only=True)
    torch.save(halve(visual), language / "visual_weight.bin")


def test_files_of_other_forms_stay_in_their_precision(copy, config, tmp_path, lavit):
    saved_otherwise(copy)
    parts, unused = open_published(copy, load_experiment(config))
    assert unused[1:] == ["language_model: model.layers.0.self_attn.rotary_emb.inv_freq"]
    LaVIT(parts).save_pretrained(tmp_path / "half")
    for name in ("language_model/model", "decoder/unet/diffusion_pytorch_model", "decoder/vae/diffusion_pytorch_model"):
        found = load_file(tmp_path / "half" / f"{name}.safetensors")
        assert {value.dtype for value in found.values()} == {torch.float16}, name
    half = LaVIT.from_pretrained(tmp_path / "half", "cpu")
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}
    assert torch.equal(half.model.head.new, lavit.model.head.new.half().float())
    assert half.draw("a cat").size == (16, 16) and isinstance(half.caption(PICTURE), str)


def test_an_unconditional_vector_for_each_patch(copy, config, tmp_path):
    rows = torch.randn(1, P, WIDTH, generator=torch.Generator().manual_seed(2))
    path = copy / "pixel_decoding" / "uncond_embeddings.bin"
    torch.save({"uncond": torch.nn.Parameter(rows)}, path)
    convert.main([str(copy), str(config), "--release", str(tmp_path / "out")])
    renderer = LaVIT.from_pretrained(tmp_path / "out", "cpu").renderer
    assert torch.equal(renderer.conditioning(torch.zeros(1, P, D), torch.tensor([True]), (16, 16)).states, rows)
    for wrong, match in (
        (torch.zeros(1, 7, WIDTH), r"is \(1, 7, 12\); it must be one vector .*width 12, or one for each of the 16"),
        ({"a": rows, "b": rows}, "something else than one tensor"),
    ):
        torch.save(wrong, path)
        refused(copy, config, match)


def test_missing_files_are_named_together(copy, config, tmp_path, capsys):
    for name in ("language_model/visual_weight.bin", "pixel_decoding/vae/config.json"):
        (copy / name).unlink()
    with pytest.raises(SystemExit):
        convert.main([str(copy), str(config), "--release", str(tmp_path / "out")])
    said = capsys.readouterr().err.strip()
    assert "has no language_model/visual_weight.bin, pixel_decoding/vae/config.json; give the folder" in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_language_models_that_do_not_fit(copy, config):
    place = copy / "language_model"
    weights, index = place / "model.safetensors", place / "pytorch_model.bin.index.json"
    state = load_file(weights)
    changed = {name: value for name, value in state.items() if "up_proj" not in name}
    changed |= {"lm_head.weight": state["lm_head.weight"][:-1].clone(), "lm_head.bias": torch.zeros(3)}
    save_file(changed, weights)
    refused(copy, config, r"mlp\.up_proj\.weight is missing.*blocks\.lm_head\.bias is unexpected.*"
                          r"head\.new is \(25, 16\) instead of \(26, 16\)")  # fmt: skip
    weights.write_bytes(b"cut")
    refused(copy, config, r"model\.safetensors cannot be read")
    weights.unlink()
    refused(copy, config, "no model.safetensors, no pytorch_model.bin")
    index.write_text(json.dumps({"weight_map": {"a": "part-1.bin", "b": "part-2.bin"}}))
    refused(copy, config, r"has no part-1\.bin, part-2\.bin, which pytorch_model\.bin\.index\.json names")
    index.write_text("[]")
    refused(copy, config, "no index of weights")
    shape = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(shape | {"vocab_size": shape["vocab_size"] + 1}))
    refused(copy, config, f"has {shape['vocab_size'] + 1} rows, but its text tokenizer has .*codes is 24, with two")
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    refused(copy, config, "a model of type gpt2; the published one is a llama")


def test_visual_weights_that_do_not_fit(copy, config):
    path = copy / "language_model" / "visual_weight.bin"
    state = torch.load(path, weights_only=True)
    state["vit_proj.weight"] = state["vit_proj.weight"][:, :-1]
    state["vit_norm.weight"] = torch.zeros(3)
    del state["causal_encoder.norm.bias"]
    torch.save(state, path)
    refused(copy, config, r"port\.merger\.norm\.bias is missing, vit_norm\.weight is unexpected, "
                          r"port\.proj\.weight is \(16, 191\) instead of \(16, 192\)")  # fmt: skip


def test_pixel_decoders_that_do_not_fit(copy, config, larger):
    place, words = copy / "pixel_decoding", copy / "visual_tokenizer" / "tokenizer_decoder.bin"
    refused(copy, config, "block_out_channels is", ["decoder.model.unet.channels=[16, 16]"])
    refused(copy, config, "vae does not fit", ["decoder.model.latents.vae.layers=2"])
    refused(
        copy,
        config,
        "prediction_type is epsilon there and v_prediction here",
        ["decoder.model.prediction=v_prediction"],
    )
    folded = ["decoder.model.latents={folded: {patch: 2}}"]
    refused(copy, config, "latents.vae is not set", folded)
    (place / "scheduler" / "scheduler_config.json").write_text("{")
    refused(copy, config, "no scheduler of diffusers")
    state = torch.load(words, weights_only=True)["model"]
    torch.save(state | {"cls.weight": torch.zeros(2)}, words)
    refused(copy, config, "unexpected tensors: tokenizer_decoder.bin: cls.weight")
    words = words.with_name("highres_tokenizer_decoder.bin")
    state = torch.load(words, weights_only=True)
    del state["unet_attnpool.q_proj.bias"]
    state["unet_attnpool.c_proj.bias"] = torch.zeros(8)
    torch.save(state, words)
    refused(copy, config, r"pool\.query\.bias is missing, unet_attnpool\.c_proj\.bias is unexpected", larger)
    torch.save(large_decoder() | {"unet_attnpool.positional_embedding": torch.zeros(P + 1, 8)}, words)
    refused(copy, config, r"positional_embedding is \(17, 8\) instead of \(1, 8\)", larger)


class Evil:
    def __reduce__(self):
        return (print, ("code that came with the weights",))


@pytest.mark.parametrize(
    "name",
    [
        "language_model/visual_weight.bin",
        "language_model/pytorch_model.bin",
        "visual_tokenizer/tokenizer_decoder.bin",
        "pixel_decoding/uncond_embeddings.bin",
        "pixel_decoding/unet/diffusion_pytorch_model.bin",
    ],
)
def test_pickled_code_is_not_run(copy, config, capsys, name):
    torch.save({"x": Evil()}, copy / name)
    for file in (copy / name).parent.glob("*.safetensors") if name.endswith("model.bin") else ():
        file.unlink()
    refused(copy, config, "cannot be read as weights|cannot be opened")
    assert "code that came" not in capsys.readouterr().out
