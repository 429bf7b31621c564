"""A tiny run of TEAL for pictures, stage after stage in this process, and what must not have moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lavit.experiment import load_experiment
from lavit.layers.bias_norm import BIAS, GAIN, without_bias_norm
from lavit.model import build_llm
from lavit.pipeline import LaVIT
from lavit.workspace import Workspace
from tests.runs.stages import run_stages

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "teal" / "toy.yaml"
PROJECTIONS = {f"{side}.new.image.project{part}" for side in ("embedding", "head") for part in ("", "_bias")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teal") / "run"
    run_stages(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def work(run):
    return Workspace(load_experiment(CONFIG, [f"run={run}"]), run)


def changed(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
    assert old.keys() == new.keys()
    return {name for name in new if not torch.equal(new[name], old[name])}


def test_the_first_stage_moves_the_two_projections_and_nothing_else(run, work):
    aligned = load_file(run / "pretrain" / "align" / "model.safetensors")
    assert changed(work.new_model().state_dict(), aligned) == PROJECTIONS


def test_the_second_stage_moves_codebooks_projections_biases_and_gains(run):
    old, new = (load_file(run / "pretrain" / phase / "model.safetensors") for phase in ("align", "finetune"))
    moved = changed(old, new)
    rows = {
        f"{side}.new.image.{part}"
        for side in ("embedding", "head")
        for part in ("marks", "codes", "project", "project_bias")
    }
    assert rows <= moved and all(name.endswith((BIAS, GAIN)) for name in moved - rows)
    assert any(name.endswith(BIAS) for name in moved) and any(name.endswith(GAIN) for name in moved)


def test_codebooks_begin_as_the_tokenizers(run, work):
    codebook = load_file(run / "tokenizer" / "tokenizer.safetensors")["quantizer.codebook"]
    fresh = work.new_model()
    assert torch.equal(fresh.embedding.new.image.codes, codebook) and torch.equal(fresh.head.new.image.codes, codebook)


def test_the_language_model_is_bit_for_bit_what_it_was(work):
    """All of its tensors, and its logits of text without the biases and gains."""
    config, text = work.experiment.pretrain.model, work.text_tokenizer()
    model, plain = work.model(), build_llm(config, len(text), work.experiment.seed).eval()
    kept = model.blocks.state_dict()
    old = {name: value for name, value in plain.model.state_dict().items() if name != "embed_tokens.weight"}
    assert all(torch.equal(kept[name], value) for name, value in old.items())
    assert torch.equal(model.embedding.text.weight, plain.get_input_embeddings().weight)
    assert torch.equal(model.head.text, plain.get_output_embeddings().weight)
    ids = torch.tensor([text("animals: a cat")["input_ids"]])
    with torch.no_grad(), without_bias_norm(model.blocks):
        places = torch.arange(ids.shape[1])[None]
        inputs = {"inputs_embeds": model.embedding(ids), "position_ids": places, "use_cache": False}
        causal = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        found = model.blocks(**inputs, attention_mask=causal).last_hidden_state
        expected = plain.model(**inputs | {"inputs_embeds": plain.model.embed_tokens(ids)}, attention_mask=causal)
        assert torch.equal(found, expected.last_hidden_state)
        logits = model.head(found)[..., : len(text)]
        assert torch.equal(logits, F.linear(found, plain.get_output_embeddings().weight))
    with torch.no_grad():
        changed_too = model.blocks(**inputs, attention_mask=causal).last_hidden_state
    assert not torch.equal(changed_too, found), "biases and gains were trained, so that they change something"


def test_a_picture_is_a_fixed_number_of_ids_that_go_in_and_come_out(work):
    system = LaVIT.from_run(work, renders=False)
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert [len(found.words) for found in system.tokens(pictures)] == [16, 16]
    document = system.maker.prompt(system.see(pictures), "text")
    assert all(span.features is None for span in document), "ids alone enter"
    words = system.draw_words(["animals: cat"], system.plans.image, [0])
    assert len(words[0]) == 16 and system.features(words).shape == (1, 16, 344)
    assert all(isinstance(text, str) for text in system.caption(pictures))


def test_a_release_of_it_does_the_same(work, tmp_path):
    system = LaVIT.from_run(work, renders=False)
    system.save_pretrained(tmp_path / "release")
    again = LaVIT.from_pretrained(tmp_path / "release", "cpu")
    picture = torch.rand(3, 64, 64)
    assert again.caption(picture) == system.caption(picture)
    assert torch.equal(again.draw_words(["a cat"], system.plans.image, [3])[0],
                       system.draw_words(["a cat"], system.plans.image, [3])[0])  # fmt: skip


def test_its_report(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"caption", "vqa", "seconds"}
    assert "<h1>Tokens in, tokens out</h1>" in (run / "report.html").read_text()
