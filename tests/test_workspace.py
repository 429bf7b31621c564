from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.caption import nearest_pictures
from lavit.data.prepare import prepare
from lavit.data.text import TrainedTextConfig, train_text_tokenizer
from lavit.experiment import load_experiment
from lavit.pipeline import LaVIT
from lavit.renderers.folder import save_diffusers
from lavit.tokenizers.encoders import WeightsConfig
from lavit.weights import save_weights
from lavit.workspace import Workspace

EXPERIMENT = """
data:
  image_size: 64
  split: {{validation: 0.25, test: 0.25}}
  sources: [{{folder: {{path: {images}}}}}]
tokenizer:
  model:
    encoder: {{weights: {{random: 0}}, image_size: 64, grid: 4, layers: [{{name: blocks.1, width: 24}}]}}
    merger: {{width: 8, blocks: 1, heads: 2, mlp: 16}}
    quantizer: {{codes: 12, width: 4}}
    decoder: {{width: 8, blocks: 1, heads: 2, mlp: 16}}
pretrain:
  row: 64
  text: {{trained: {{vocabulary: 300}}}}
  model: {{llm: {{scratch: {{hidden: 16, layers: 1, heads: 2, mlp: 32, max_position: 64}}}}}}
decoder:
  model:
    image_size: 16
    latents: {{folded: {{patch: 4}}}}
    conditioning: {{sd: {{width: 8}}}}
    unet: {{channels: [8, 16], cross_attention: [false, false], heads: [1, 2], layers: 1, groups: 4}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Workspace:
    """A run whose data is prepared: sixteen pictures of four concepts a split at most."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(16):
        noise = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(root / "images" / f"{i}.png")
        (root / "images" / f"{i}.txt").write_text(f"thing {i}")
    path = root / "experiment.yaml"
    path.write_text(EXPERIMENT.format(images=root / "images"))
    experiment = load_experiment(path)
    prepare(experiment.data, root / "run" / "data")
    return Workspace(experiment, root / "run")


def test_what_a_run_does_not_have_yet_is_said(work, tmp_path):
    empty = Workspace(work.experiment, tmp_path)
    with pytest.raises(ValueError, match="no shards of split 'train'"):
        empty.pictures("captions", "train")
    shutil.copytree(work.run / "data", tmp_path / "data")
    with pytest.raises(ValueError, match="no features .*captions-train-.*.npy; run tokenizer.prepare first"):
        empty.pictures("captions", "train")
    with pytest.raises(ValueError, match="no codes .*captions/test-0.*; run tokenizer.extract first"):
        empty.codes("captions", "test")
    with pytest.raises(ValueError, match="no weights at .*tokenizer.safetensors"):
        empty.tokenizer()
    with pytest.raises(ValueError, match="no text tokenizer folder"):
        empty.model()


def test_features_are_cached_and_standardized_by_training_pictures(work):
    work.cache_features()
    pictures = work.pictures("captions", "train")
    size = work.experiment.tokenizer.model.encoder.image_size
    every = pictures.inputs(list(range(len(pictures))), size)
    assert every.shape == (len(pictures), 16, 24)
    torch.testing.assert_close(every.mean((0, 1)), torch.zeros(24), atol=0.05, rtol=0)
    varies = every.std((0, 1)) > 0.1
    torch.testing.assert_close(every.std((0, 1))[varies], torch.ones(int(varies.sum())), atol=0.05, rtol=0)
    assert varies.any()
    held = work.pictures("captions", "test")
    expected = work.new_tokenizer().eval().encoder(held.pixels([0, 1], size))
    torch.testing.assert_close(held.inputs([0, 1], size), expected, atol=5e-3, rtol=1e-3)
    assert work.parts() == ["captions"]


def test_features_of_other_pictures_are_not_taken_for_theirs(work, tmp_path):
    """As after new pictures under the same names and captions, and a new call of prepare."""
    work.cache_features()
    other = Workspace(copy.deepcopy(work.experiment), tmp_path / "run")
    shutil.copytree(work.run / "features", other.run / "features")
    folder = Path(other.experiment.data.sources[0].folder.path)
    shutil.copytree(folder, tmp_path / "images")
    for path in (tmp_path / "images").glob("*.png"):
        Image.open(path).rotate(90).save(path)
    other.experiment.data.sources[0].folder.path = str(tmp_path / "images")
    prepare(other.experiment.data, other.run / "data")
    with pytest.raises(ValueError, match="no features"):
        other.pictures("captions", "test")
    other.cache_features()
    size = other.experiment.tokenizer.model.encoder.image_size
    held = other.pictures("captions", "test")
    expected = other.new_tokenizer().eval().encoder(held.pixels([0, 1], size))
    torch.testing.assert_close(held.inputs([0, 1], size), expected, atol=5e-3, rtol=1e-3)


def test_features_of_another_encoder_are_not_taken(work):
    work.cache_features()
    shards = work.shards("captions", "test")
    own = work.features_path("captions", "test", shards)
    assert own.is_file()
    model = work.experiment.tokenizer.model
    for change in ({"image_size": 32}, {"clip": 5.0}, {"weights": WeightsConfig(random=1)}):
        encoder = dataclasses.replace(model.encoder, **change)
        stage = dataclasses.replace(work.experiment.tokenizer, model=dataclasses.replace(model, encoder=encoder))
        other = Workspace(dataclasses.replace(work.experiment, tokenizer=stage), work.run)
        assert not other.features_path("captions", "test", shards).is_file()


def test_a_file_that_was_cut_is_named_with_the_remedy(work, tmp_path):
    work.cache_features()
    run = Workspace(work.experiment, tmp_path)
    for name in ("data", "features"):
        shutil.copytree(work.run / name, tmp_path / name)
    path = next(p for p in (tmp_path / "features").glob("captions-test-*.npy") if not p.stem.endswith("-head"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{path} cannot be read .*; remove it and prepare the data again"):
        run.pictures("captions", "test")
    folder = run.code_folder("captions", run.shards("captions", "test").paths[0])
    folder.mkdir(parents=True)
    (folder / "words.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=f"{folder} cannot be read .*; remove it and extract again"):
        run.codes("captions", "test")


def test_head_features_are_the_same_from_the_cache_and_anew(work):
    work.cache_features()
    cached = work.head_features("captions", "validation")
    next((work.run / "features").glob("captions-validation-*-head.npy")).unlink()
    torch.testing.assert_close(work.head_features("captions", "validation"), cached, atol=1e-5, rtol=1e-5)
    assert cached.shape == (len(work.shards("captions", "validation")), 1280)


def test_of_a_large_split_the_few_that_are_asked_for_are_encoded(work, monkeypatch):
    whole = work.head_features("captions", "validation")
    assert torch.equal(work.head_features("captions", "validation", [2, 0]), whole[[2, 0]])
    (kept,) = (work.run / "features").glob("captions-validation-*-head.npy")
    kept.unlink()
    monkeypatch.setattr("lavit.workspace.SEARCHED", 1)
    torch.testing.assert_close(work.head_features("captions", "validation", [2, 0]), whole[[2, 0]])
    assert not kept.exists()


def test_a_nearest_picture_is_looked_for_among_some_of_many(work, monkeypatch):
    whole, half = work.head_features("captions", "train"), len(work.shards("captions", "train")) // 2
    everything, known = work.searched()
    assert everything == list(range(len(whole))) and torch.equal(known, whole)
    monkeypatch.setattr("lavit.workspace.SEARCHED", 2)
    some, known = work.searched()
    assert some == [0, half] and torch.equal(known, whole[[0, half]]), "of what is kept for all"
    (all_heads,) = (work.run / "features").glob("captions-train-*-head.npy")
    all_heads.unlink()
    torch.testing.assert_close(work.searched()[1], known)
    alike = F.normalize(work.head_features("captions", "test", [1, 0]), dim=-1) @ F.normalize(known, dim=-1).T
    assert nearest_pictures(work, "test", [1, 0]) == [some[n] for n in alike.argmax(1).tolist()]
    monkeypatch.setattr(work, "_heads", lambda *_: pytest.fail("they are kept"))
    assert work.searched()[0] == [0, half]
    next((work.run / "features").glob("captions-train-*-2-head.npy")).unlink()


def test_trained_parts_are_opened_as_they_were_saved(work):
    tokenizer = work.new_tokenizer()
    tokenizer.quantizer.codebook.mul_(-1)
    save_weights(tokenizer, work.run / "tokenizer" / "tokenizer.safetensors")
    opened = work.tokenizer()
    assert not opened.training
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in tokenizer.state_dict().items())
    assert opened.encoder.mean.abs().sum() > 0, "the statistics of the features come with the weights"

    text = train_text_tokenizer(["thing 1 2 3"], TrainedTextConfig(300))
    text.save_pretrained(work.run / "pretrain" / "text")
    model = work.new_model()
    assert model.vocabulary.text_size == len(text) and model.vocabulary.codes == 12
    save_weights(model, work.run / "pretrain" / "model.safetensors")
    assert LaVIT.from_run(work, renders=False).renderer is None, "writing needs no trained renderer"
    renderer = work.new_renderer()
    renderer.draft_weight.fill_(0.5)
    save_weights(renderer, work.run / "decoder" / "renderer.safetensors")
    system = LaVIT.from_run(work)
    assert torch.equal(system.renderer.draft_weight, renderer.draft_weight)
    assert torch.equal(system.model.head.new, model.head.new) and not system.model.training

    save_diffusers(renderer, work.run / "given")
    other = copy.deepcopy(work.experiment)
    other.seed, other.decoder.model.unet.folder = 5, str(work.run / "given" / "unet")
    begun, blank = (
        Workspace(e, work.run).new_renderer() for e in (other, dataclasses.replace(work.experiment, seed=5))
    )
    assert torch.equal(begun.unet.conv_in.weight, renderer.unet.conv_in.weight), "training begins from the folder"
    assert not torch.equal(blank.unet.conv_in.weight, renderer.unet.conv_in.weight)
    shutil.rmtree(work.run / "given")
    with pytest.raises(ValueError, match="decoder.model.unet.folder: .*/given/unet has no config.json"):
        Workspace(other, work.run).new_renderer()
    trained = Workspace(other, work.run).renderer()
    assert torch.equal(trained.draft_weight, renderer.draft_weight), "what is trained needs the folder no more"
    assert system.row == 64 and system.text.eos_token_id == 1
