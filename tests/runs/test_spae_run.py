"""A tiny run of SPAE, stage after stage in this process: words of pictures, and pictures of words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.demo import stages_of
from eval.pyramid import by_layer, meaning
from lavit.experiment import load_experiment, run_stage
from lavit.pipeline import LaVIT
from lavit.runs import read_json
from lavit.tokenizers.word_codebook import codebook_digest
from lavit.workspace import Workspace
from tests.runs.stages import alone, run_stages
from tests.tokenizers.tiny_clip import tiny_clip
from tokenizer.extract_words import main as extract_words
from tokenizer.extract_words import tokens_of
from tokenizer.train_pyramid import main as train_pyramid
from tokenizer.train_pyramid import prefix_of

CONFIG = Path(__file__).parents[2] / "configs" / "spae" / "toy.yaml"
TOKENS = 37
FEW = (
    "demo.stages=[data,pyramid,words,eval/pyramid,eval/caption,eval/vqa,report]",
    "evaluation.captions=4", "evaluation.retrieval=4", "evaluation.questions=4",
    "evaluation.text.max_tokens=3", "evaluation.answer.max_tokens=2", "evaluation.in_context.read=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spae") / "run"
    run_stages(CONFIG, folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def work(run):
    return Workspace(load_experiment(CONFIG, [f"run={run}", *FEW]), run)


def test_a_picture_has_so_many_words_and_they_come_back_from_the_text_tokenizer(work):
    words, text = work.word_list(), work.text_tokenizer()
    assert len(words.ids) == len(words.words) == 300 == len(set(words.ids.tolist()))
    for split in ("train", "validation", "test"):
        codes = work.pyramid_codes(split)
        assert len(codes) == len(work.shards("captions", split))
        for number in range(len(codes)):
            assert codes.codes(number).shape == (TOKENS,) and int(codes.codes(number).max()) < 300
            assert codes.places(number).tolist() == list(range(TOKENS))
        ids = words.ids[codes.codes(0)].tolist()
        assert [text(text.decode([i]), add_special_tokens=False)["input_ids"] for i in ids] == [[i] for i in ids]
    assert read_json(work.run / "words" / "words.json")["ids"] == words.ids.tolist()


def test_words_are_those_of_the_trained_pyramid_and_every_prefix_is_a_picture(work):
    pyramid, codes = work.pyramid(), work.pyramid_codes("test")
    assert pyramid.layers == [(1, 1), (2, 2), (4, 4), (4, 4)] and pyramid.counts == [1, 4, 16, 16]
    assert not pyramid.training
    pictures = work.pictures("captions", "test")
    made = tokens_of(pyramid, pictures, work.head_features("captions", "test"), [0, 1])
    known = torch.stack([codes.codes(0), codes.codes(1)])
    assert torch.equal(made.codes, known)
    again = pyramid.encode(pictures.pixels([0, 1], 64))
    assert float((again.codes == known).float().mean()) > 0.95
    for count in (1, 5, 6, 21, TOKENS):
        pixels = pyramid.decode_prefix(known[:, :count])
        assert pixels.shape == (2, 3, 64, 64) and 0 <= pixels.min() and pixels.max() <= 1
    with pytest.raises(ValueError, match="not the language model's ids"):
        pyramid.decode_prefix(work.word_list().ids[known[:, :5]])


def test_training_moves_all_but_the_codebook(run, work):
    trained = load_file(run / "pyramid" / "pyramid.safetensors")
    fresh = work.new_pyramid().state_dict()
    assert read_json(run / "pyramid" / "done.json")["codebook"] == codebook_digest(fresh["quantizer.codebook"])
    assert torch.equal(trained["quantizer.codebook"], fresh["quantizer.codebook"])
    same = [name for name in fresh if torch.equal(trained[name], fresh[name])]
    assert same == ["quantizer.codebook"]


def test_the_critic_joins_when_it_is_told_to(run):
    lines = [json.loads(line) for line in (run / "pyramid" / "log.jsonl").read_text().splitlines()]
    assert [line["critic"] > 0 for line in lines] == [False] * 2 + [True] * 4
    for line in lines:
        appearance = line["error"] + 0.33 * line["commitment"] + 0.1 * line["features"]
        assert line["weight"] * line["semantic"] == pytest.approx(appearance, rel=1e-3)


def test_a_training_that_is_cut_ends_as_one_that_was_not(run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    for name in ("done.json", "pyramid.safetensors", "log.jsonl"):
        (cut / "pyramid" / name).unlink()
    for step in (4, 6):
        shutil.rmtree(cut / "pyramid" / "checkpoints" / f"step{step}")
    with alone():
        run_stage(train_pyramid, None, [str(CONFIG), f"run={cut}", *FEW])
    steps = [json.loads(line)["step"] for line in (cut / "pyramid" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 5]
    expected, found = (load_file(folder / "pyramid" / "pyramid.safetensors") for folder in (run, cut))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_extraction_goes_on_and_knows_whose_words_it_holds(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    kept, gone = sorted(path for path in (other / "words" / "captions").iterdir() if path.is_dir())[:2]
    about = kept / "about.json"
    shutil.rmtree(gone)
    (other / "words" / "done.json").unlink()
    before = about.stat().st_mtime_ns
    run_stage(extract_words, "words", [str(CONFIG), f"run={other}", *FEW])
    assert gone.is_dir() and about.stat().st_mtime_ns == before
    about.write_text(about.read_text().replace('"made_by": "', '"made_by": "0'))
    (other / "words" / "done.json").unlink()
    with pytest.raises(SystemExit) as error:
        run_stage(extract_words, "words", [str(CONFIG), f"run={other}", *FEW])
    assert "words of another pyramid; remove" in str(error.value.__cause__)


def test_another_language_model_does_not_read_the_words_of_a_pyramid(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    told = [str(CONFIG), f"run={other}", *FEW, "pretrain.text={folder: else}", "pretrain.model.llm={folder: else}"]
    with pytest.raises(SystemExit) as error:
        run_stage(extract_words, "words", told)
    said = rf"other settings: pretrain.model.llm.*; remove {other}/pyramid to make it anew, or choose another run"
    assert re.search(said, str(error.value.__cause__))


def test_its_figures_and_report(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"caption", "vqa", "pyramid", "seconds"} and metrics["seconds"].keys() >= {
        "pyramid",
        "words",
        "eval",
    }
    found = metrics["pyramid"]
    assert found["tokens"] == TOKENS and found["mse"] == found["mse_4"] and found["r5"] == found["r5_4"]
    assert found["words_used"] <= 300 and 0 < found["latent_error_average"] < found["latent_error_residual"]
    page = (run / "report.html").read_text()
    samples = read_json(run / "eval" / "pyramid" / "figures.json")["samples"]
    assert "<h2>Pyramid of words</h2>" in page and " · ".join(samples[0]["words"][1]) in page
    assert "Drawings" not in page


def test_stages_come_after_what_they_are_built_on():
    stages = {stage.name: stage for stage in stages_of(str(CONFIG), [])}
    assert list(stages) == [
        "data", "pyramid", "words", "eval/caption", "eval/vqa", "eval/in_context", "eval/pyramid", "report"
    ]  # fmt: skip
    assert stages["pyramid"].ranks and stages["words"].needs == ("pyramid",)
    assert "words" in stages["eval/caption"].needs and "words" in stages["eval/in_context"].needs


@pytest.mark.parametrize("override, words", [
    ("pyramid.train.zero_stage=3", "pyramid.train.zero_stage 3"),
    ("pyramid.train.batch=7", "pyramid.train.batch 7 is not a multiple"),
    ("pyramid.model.sides=[1,3,4]", "pyramid.model.sides"),
    ("pyramid.loss.thresholds=[2.0]", "pyramid.loss.thresholds"),
    ("pyramid.relevance.templates=[a picture]", "pyramid.relevance.templates"),
    ("pyramid.words.most=1", "pyramid.words: most 1"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_told_before_anything_starts(override, words):
    demo = ["demo.processes=2"] if "batch" in override else []
    with pytest.raises(ValueError) as error:
        load_experiment(CONFIG, [override, *demo])
    assert words in str(error.value)


def test_a_pyramid_needs_a_language_model_that_there_is():
    for more in (["pretrain.model.llm.scratch.layers=1", "pretrain.text.trained.vocabulary=400"],):
        with pytest.raises(ValueError, match="pyramid: its words are those of a language model that there is"):
            load_experiment(CONFIG, more)


def test_clip_of_a_folder_stands_in_the_alignments_place(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run / "data", other / "data")
    folder = tiny_clip(tmp_path / "clip")
    experiment = load_experiment(CONFIG, [f"run={other}", f"pyramid.relevance.clip={folder}"])
    (other / "pyramid").mkdir()
    work = Workspace(experiment, other)
    with pytest.raises(ValueError, match="run tokenizer.extract_words first"):
        work.pyramid_codes("test")
    words, pictures = work.word_meanings(), work.picture_meanings("test")
    assert words.shape == (300, 10) and pictures.shape == (len(work.shards("captions", "test")), 10)
    for vectors in (words, pictures):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
    assert torch.equal(pictures, work.picture_meanings("test"))
    assert not (other / "pyramid" / "alignment.safetensors").exists()


def test_prefixes_are_drawn_for_their_share():
    drawn = [prefix_of(torch.Generator().manual_seed(seed), 0.5, 4) for seed in range(400)]
    assert set(drawn) == {1, 2, 3, 4} and 0.5 < sum(n == 4 for n in drawn) / 400 < 0.75
    assert all(prefix_of(torch.Generator().manual_seed(seed), 0.0, 4) == 4 for seed in range(20))


# ------------------------------------------------------------------------------------------------------------- figures


def test_words_that_say_what_there_is_are_told_from_random_ones(monkeypatch):
    """Three pictures whose words are their label, among words that are nothing to them."""
    axes = torch.eye(6)
    monkeypatch.setattr("eval.pyramid.sentence_vectors", lambda texts: axes[: len(texts)])
    monkeypatch.setattr("eval.pyramid.centred", lambda vectors: vectors)
    experiment = load_experiment(CONFIG)
    named = torch.tensor([[0, 0], [1, 1], [2, 2]])
    learned = ["d: u", "b: v", "b: w", "d: x", "d: y"]  # the commonest of them is no class of the pictures'
    found = meaning(named, axes, ["a: x", "b: y", "c: z"], learned, experiment)
    assert found["similarity"] == 1 and found["similarity_shuffled"] == 0
    assert found["similarity_random"] == pytest.approx(1 / 6, abs=0.1)
    assert found["category"] == 1 and found["category_shuffled"] == 0
    assert found["category_majority"] == pytest.approx(1 / 3)
    none = meaning(named, axes, ["x", "y", "z"], learned, experiment)
    assert none["category"] is None and "fewer than two" in none["reasons"]["category"]


def test_words_layer_by_layer():
    assert by_layer(torch.tensor([1, 0, 0, 1, 1]), [1, 4], ["a", "b"]) == [["b"], ["a", "a", "b", "b"]]


def test_captions_and_answers_are_written_in_context(run, work):
    captions = read_json(run / "eval" / "caption" / "figures.json")
    answers = read_json(run / "eval" / "vqa" / "figures.json")
    assert captions["n"] == answers["n"] == 4 and all("written" in sample for sample in captions["samples"])
    codes = work.codes("vqa", "test")
    assert len(codes) == len(work.shards("vqa", "test")) and codes.codes(0).shape == (TOKENS,)


def test_what_a_trained_system_does_it_cannot(work):
    with pytest.raises(ValueError, match="trains no language model: its pictures are words"):
        LaVIT.from_run(work)
