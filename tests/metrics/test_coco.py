"""The scores are those of pycocoevalcap, called as its own evaluation calls it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from lavit.metrics import captions, meteor, ptb, spice
from lavit.metrics.coco import FIGURES, caption_figures

needs_java = pytest.mark.skipif(not ptb.java_runs(), reason="java does not run here")
WORDS = "a the brown red dog cat runs ran sits over on grass bowl apples two café's кот small train".split()


def drawn(count: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions of random words: one to five references, candidates from empty to twelve words."""
    generator = np.random.default_rng(count)

    def caption(least: int) -> str:
        return " ".join(generator.choice(WORDS, generator.integers(least, 13)))

    references = {str(n): [caption(1) for _ in range(generator.integers(1, 6))] for n in range(count)}
    candidates = {key: several[0] if n % 7 == 3 else caption(0) for n, (key, several) in enumerate(references.items())}
    return references, candidates


@pytest.fixture
def without_java(monkeypatch):
    for module in (captions, meteor, spice):
        monkeypatch.setattr(module, "java_runs", lambda: False)


def test_scores_and_those_of_images_are_the_official_ones(without_java):
    references, candidates = drawn(60)
    found = caption_figures(references, candidates)
    lists = {key: [text] for key, text in found.candidates.items()}
    bleu, bleus = Bleu(4).compute_score(found.references, lists, verbose=0)
    official = {f"bleu{n}": (bleu[n - 1], bleus[n - 1]) for n in (1, 2, 3, 4)}
    official["cider"] = Cider().compute_score(found.references, lists)
    official["rouge_l"] = Rouge().compute_score(found.references, lists)
    assert found.figures.keys() == official.keys()
    for name, (value, values) in official.items():
        assert found.figures[name].value == pytest.approx(value, abs=1e-9), name
        assert found.figures[name].values == pytest.approx(np.array(values), abs=1e-9), name


def test_rouge_by_hand(without_java):
    # "a red car" of "a red apple": two of three words in order, whichever way.
    found = caption_figures({"a": ["a red apple"], "b": ["x y"]}, {"a": "a red car", "b": ""})
    assert found.figures["rouge_l"].values == pytest.approx([2 / 3, 0])
    assert found.figures["rouge_l"].value == pytest.approx(1 / 3)


def test_a_part_is_scored_as_if_it_were_all(without_java):
    references, candidates = drawn(40)
    keys = list(references)[5:25]
    part = caption_figures(references, candidates).part(keys)
    alone = caption_figures({k: references[k] for k in keys}, {k: candidates[k] for k in keys})
    assert {name: figure.value for name, figure in part.items()} == pytest.approx(
        {name: figure.value for name, figure in alone.figures.items()}
    )


def test_what_cannot_run_says_why(without_java):
    found = caption_figures(*drawn(5))
    assert set(found.figures) | set(found.reasons) == set(FIGURES)
    assert "METEOR needs a `java`" in found.reasons["meteor"] and "SPICE needs a `java`" in found.reasons["spice"]


def test_a_program_that_fails_leaves_the_other_figures(without_java, monkeypatch):
    monkeypatch.setattr(meteor, "java_runs", lambda: True)
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, b"", b"no memory"))
    found = caption_figures(*drawn(5))
    assert "METEOR answered 0 lines to 5 (1): no memory" in found.reasons["meteor"]
    assert set(found.figures) == set(FIGURES) - {"meteor", "spice"}


def test_spice_names_its_jars(monkeypatch, tmp_path):
    monkeypatch.setattr(spice, "java_runs", lambda: True)
    monkeypatch.setattr(spice, "FOLDER", tmp_path)
    assert "stanford-corenlp-3.6.0-models.jar" in spice.spice_missing()
    (tmp_path / "lib").mkdir()
    for name in spice.CORENLP:
        (tmp_path / "lib" / name).touch()
    assert spice.spice_missing() is None


def test_spice_is_read_by_image(monkeypatch):
    def jar(command, **_):
        rows = json.loads(Path(command[command.index("spice-1.0.jar") + 1]).read_text())
        assert rows[1] == {"image_id": 1, "test": "a cat", "refs": ["the cat", "кот"]}
        scores = [{"image_id": row["image_id"], "scores": {"All": {"f": row["image_id"] / 4}}} for row in rows]
        Path(command[command.index("-out") + 1]).write_text(json.dumps(scores[::-1]))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(subprocess, "run", jar)
    assert spice.spice_values([["a dog"], ["the cat", "кот"]], ["", "a cat"]).tolist() == [0, 0.25]
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, b"", b"no models"))
    with pytest.raises(RuntimeError, match="SPICE failed .* no models"):
        spice.spice_values([["a dog"]], ["a"])


def test_meteor_by_hand():
    # "a dog runs over the grass" beside "the dog ran over grass", as the jar counts: four words equal, two of them
    # function words, one a synonym, in three pieces.
    counts = np.zeros((1, meteor.COUNTS))
    counts[0, [0, 1, 2, 3]] = 6, 5, 3, 2
    counts[0, [4, 5, 6, 7, 12, 13, 20, 21, 22]] = 2, 2, 2, 2, 1, 1, 3, 5, 5
    precision, recall = (2.0 + 0.8 * 0.75) / 3, (2.0 + 0.8 * 0.75) / 2.75
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert meteor.meteor_scores(counts)[0] == pytest.approx(mean * (1 - 0.6 * 0.6**0.2))
    assert meteor.meteor_scores(np.zeros((1, meteor.COUNTS))).tolist() == [0]


@pytest.mark.slow
@needs_java
def test_meteor_is_the_official_one():
    from pycocoevalcap.meteor.meteor import Meteor

    found = caption_figures(*drawn(60))
    value, values = Meteor().compute_score(found.references, {key: [text] for key, text in found.candidates.items()})
    assert found.figures["meteor"].value == pytest.approx(value, abs=1e-9)
    assert found.figures["meteor"].values == pytest.approx(np.array(values), abs=1e-9)


@pytest.mark.parametrize("code, output", [(1, b""), (0, b"1.0 2.0\n"), (0, b"")])
def test_a_meteor_that_fails_is_an_error(monkeypatch, code, output):
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, code, output, b"no memory"))
    with pytest.raises(RuntimeError, match="METEOR answered .* no memory"):
        meteor.meteor_counts([["a dog"]], ["a dog"])


def test_a_meteor_that_hangs_is_an_error(monkeypatch):
    def late(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(RuntimeError, match="did not answer within 301 s"):
        meteor.meteor_counts([["a dog"]], ["a dog"])
