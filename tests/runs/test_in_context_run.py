"""Answers and pyramids in context from figures to report, on a few squares, with a tiny language model.

The words of a pyramid are made here: the first ones carry the class with some noise, the others are the picture's own.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eval import few_shot, in_context, report
from eval.figures import REQUIRED, groups_of, read_figures, table
from lavit.data.order import generator_for
from lavit.data.text import TrainedTextConfig, train_text_tokenizer
from lavit.experiment import load_experiment, run_stage
from lavit.metrics.captions import category_of
from lavit.workspace import Workspace
from tokenizer import prepare

CONFIG = """
run: {run}
seed: 3
demo: {{stages: [data, report]}}
data:
  sources: [{{folder: {{path: {pictures}, captions: {pictures}/captions.csv, name: squares, licence: CC0-1.0}}}}]
  vqa: null
  image_size: 32
  split: {{validation: 0.05, test: 0.75}}
tokenizer:
  vqa_share: 0.0
  model:
    encoder: {{model: tf_efficientnet_lite0, weights: {{random: 0}}, image_size: 32, grid: 4,
               layers: [{{name: blocks.2, width: 40}}]}}
pretrain:
  mixture: {{question_answer: 0.0}}
  model: {{llm: {{scratch: {{hidden: 16, layers: 2, heads: 2, mlp: 32, max_position: 2048}}}}}}
evaluation:
  in_context:
    category: {{ways: [2], settings: [{{shots: 1}}, {{shots: 2, repeats: 1, induction: false}}]}}
    label: {{ways: [2], settings: [{{shots: 1}}]}}
    words: [5, 1]
    episodes: 5
    at_once: 2
    answer: 3
    denoising: {{pictures: 6, contexts: 3, segment: 3, shown: 2}}
"""
COUNTS, WORDS = [1, 4, 9], 60
CLASSES = {"animals": "cat dog cow fox", "food": "egg pie ham fig", "travel": "car bus cab jet"}


def make_pictures(folder: Path) -> None:
    """Three pictures of each of twelve things."""
    folder.mkdir()
    dice, rows = random.Random(0), ["file,caption"]
    for category, labels in CLASSES.items():
        for label in labels.split():
            for number in range(3):
                image = Image.new("RGB", (32, 32), tuple(dice.randrange(256) for _ in range(3)))
                image.save(folder / f"{label}_{number}.png")
                rows.append(f"{label}_{number}.png,{category}: {label}")
    (folder / "captions.csv").write_text("\n".join(rows))


class Codes:
    """Words of a pyramid: those of the first two layers are of the picture's class, one in five anything else."""

    def __init__(self, work: Workspace, split: str):
        self.captions = work.pictures("captions", split).captions

    def codes(self, number: int) -> torch.Tensor:
        lot = generator_for(7, number)
        codes = torch.randint(WORDS, (sum(COUNTS),), generator=lot)
        kind = sorted(CLASSES).index(category_of(self.captions[number]))
        own = torch.rand(5, generator=lot) < 0.8
        codes[:5] = torch.where(own, 10 * kind + codes[:5] % 10, codes[:5])
        return codes


@pytest.fixture
def words(monkeypatch) -> None:
    """What the tokenizer of pyramids gives."""
    listed = SimpleNamespace(ids=torch.arange(200, 200 + WORDS), words=[f"word{i}" for i in range(WORDS)])
    painted = SimpleNamespace(
        counts=COUNTS, decode_prefix=lambda codes: codes[:, :3, None, None].expand(-1, -1, 8, 8) / 60
    )
    monkeypatch.setattr(Workspace, "word_list", lambda self: listed, raising=False)
    monkeypatch.setattr(Workspace, "pyramid_codes", lambda self, split: Codes(self, split), raising=False)
    monkeypatch.setattr(Workspace, "pyramid", lambda self: painted, raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A run with data and a text tokenizer."""
    folder = tmp_path_factory.mktemp("in_context")
    make_pictures(folder / "pictures")
    (folder / "tiny.yaml").write_text(CONFIG.format(run=folder / "run", pictures=folder / "pictures"))
    run_stage(prepare.main, None, [str(folder / "tiny.yaml")])
    texts = ["For each of the following input output pairs, output is one of: Input Output ### cat dog"] * 3
    train_text_tokenizer(texts, TrainedTextConfig(400)).save_pretrained(folder / "run" / "pretrain" / "text")
    return folder


def evaluate(folder: Path, run: Path, *settings: str) -> dict:
    run_stage(in_context.main, "eval/in_context", [str(folder / "tiny.yaml"), f"run={run}", *settings])
    return json.loads((run / "eval" / "in_context" / "figures.json").read_text())


@pytest.fixture
def copied(data, tmp_path) -> Path:
    """The run, to be worked on by one test alone."""
    shutil.copytree(data / "run", tmp_path / "run")
    return tmp_path / "run"


def test_figures_report_and_going_on_where_it_was_cut(data, copied, words, monkeypatch):
    figures = evaluate(data, copied)
    assert read_figures(copied, groups_of(["data", "eval/in_context"], False)).keys() == {"in_context"}
    assert not set(REQUIRED["in_context"].split()) - {name for name, value in figures.items() if value is not None}
    assert len(figures["cells"]) == 6 + 5 and figures["n"] == 5 * 2 * 5
    assert figures["category_2way_chance"] == figures["category_2way_last"] == 0.5
    # Without a language model the class is read from the words that were made to carry it, and from no others.
    assert figures["category_2way_similarity"] > 0.7 or figures["category_2way_overlap"] > 0.7
    assert figures["denoise_majority"] > figures["denoise_last"] == pytest.approx(1 - 3 / 14, abs=1e-6)
    assert figures["reconstruct_given"] == pytest.approx(1 - 3 / 14) and figures["denoise_random"] < 0.2
    assert [row["tokens"] for row in figures["layers"]] == COUNTS * 2
    images = np.load(copied / "eval" / "in_context" / "images.npy")
    assert images.shape == (2 * 5, 8, 8, 3) and images.dtype == np.uint8
    truth = (
        (Codes(Workspace(load_experiment(data / "tiny.yaml"), copied), "test").codes(figures["numbers"][1])[:3]) / 60
    )
    assert images[9, 0, 0].tolist() == (truth * 255).round().int().tolist()

    cut = copied / "eval" / "in_context"
    for name in ("done.json", "figures.json", "images.npy"):
        (cut / name).unlink()
    kept = sorted((cut / "parts").iterdir())
    for path in kept[::2]:
        path.unlink()
    kept[1].write_text(json.dumps(json.loads(kept[1].read_text())[:2]))
    asked = []
    real = few_shot.answer_in_context
    monkeypatch.setattr(few_shot, "answer_in_context", lambda *a: asked.append(len(a[1])) or real(*a))
    assert evaluate(data, copied) == figures
    assert 0 < sum(asked) < len(figures["cells"]) * 5, "what was kept was made again, or nothing was"

    # No pyramid is trained here.
    monkeypatch.setattr("lavit.experiment.checks.check_stages", lambda experiment: None)
    stages = "demo.stages=[data,eval/in_context,report]"
    run_stage(report.main, "report", [str(data / "tiny.yaml"), f"run={copied}", stages])
    page, metrics = (copied / "report.html").read_text(), json.loads((copied / "metrics.json").read_text())
    assert metrics["in_context"]["accuracy"] == figures["accuracy"] and "cells" not in metrics["in_context"]
    assert "<h2>In context</h2>" in page and "commonest words" in page and figures["samples"][0]["words"][0] in page
    rows = table(metrics)["In context"]
    assert [row.title for row in rows][:2] == ["Class word in context, 2 ways", "Thing in context, 2 ways"]
    assert {"chance", "words dealt anew", "random words", "words near the name"} <= {m.words for m in rows[0].marks}


def test_classes_are_of_concepts_and_of_pictures(data):
    pictures = Workspace(load_experiment(data / "tiny.yaml"), data / "run").pictures("captions", "test")
    by_category, by_label = few_shot.by_category(pictures), few_shot.by_label(pictures)
    assert set(by_category) <= set(CLASSES) and all(len(unit) == 3 for units in by_category.values() for unit in units)
    assert all(len({pictures.captions[n] for n in unit}) == 1 for units in by_category.values() for unit in units)
    assert all(len(units) == 3 and len(unit) == 1 for units in by_label.values() for unit in units)


@pytest.mark.parametrize(
    "settings, words_of",
    [
        (["evaluation.in_context.category.ways=[4]"], "4 ways of 1 shots need 4 classes with 2 different pictures"),
        (["evaluation.in_context.words=[15]"], r"words \[15\]: the pyramid has 14 words; ask for fewer"),
        (["evaluation.in_context.denoising.depth=4"], "asks for 4 layers and the pyramid has 3"),
        (["evaluation.in_context.denoising.contexts=6"], "contexts is 6 and there are 6 pictures; lower it"),
        (["evaluation.in_context.episodes=0"], "evaluation.in_context.episodes is 0"),
        (["evaluation.in_context.category.settings=[{shots: 3}]"], "need 2 classes with 4 different pictures"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(data, copied, words, settings, words_of):
    with pytest.raises(ValueError, match=words_of):
        in_context.main(load_experiment(data / "tiny.yaml", [f"run={copied}", *settings]), copied)
    assert not (copied / "eval" / "in_context" / "parts").exists()


def test_words_that_the_list_has_not(data, copied, words, monkeypatch):
    experiment = load_experiment(data / "tiny.yaml", [f"run={copied}"])
    monkeypatch.setattr(Codes, "codes", lambda self, number: torch.full((14,), WORDS))
    with pytest.raises(ValueError, match=f"has words from {WORDS} to {WORDS} and the word list has {WORDS}"):
        in_context.main(experiment, copied)
    monkeypatch.setattr(Codes, "codes", lambda self, number: torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="has no words, for it could not be read"):
        in_context.main(experiment, copied)
