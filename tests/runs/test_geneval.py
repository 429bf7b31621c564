"""GenEval of drawings of a system of random weights: the official folders, and scores by a stub detector."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eval import drawings, geneval
from lavit.benchmarks.detector import Detection
from lavit.experiment import run_stage
from tests.tokenizers.tiny_clip import tiny_clip

TOY = "configs/lavit/toy.yaml"
CAT = {"class": "cat", "count": 1}
PROMPTS = [
    {"tag": "single_object", "include": [CAT], "prompt": "a photo of a cat"},
    {"tag": "counting", "include": [CAT], "exclude": [{"class": "cat", "count": 2}], "prompt": "a photo of one cat"},
    {"tag": "colors", "include": [CAT | {"color": "red"}], "prompt": "a photo of a red cat"},
]


class CatInEverything:
    """A stand-in: a sure cat and an unsure one in every picture."""

    classes = frozenset(["cat"])

    def __init__(self, folder, device="cpu"):
        pass

    def check_classes(self, wanted):
        assert set(wanted) == {"cat"}

    def detect(self, picture):
        assert picture.size == (16, 16)
        return {"cat": [Detection((0, 0, 8, 8), 0.95), Detection((4, 4, 12, 12), 0.5)]}


@pytest.fixture
def place(tmp_path, system, monkeypatch):
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    asked: list[str] = []

    def draw_best(self, texts, *more):
        asked.extend(texts)
        return type(system).draw_best(system, texts, *more)

    monkeypatch.setattr(geneval, "open_artist", lambda *given: system)
    monkeypatch.setattr(system, "draw_best", lambda texts, *more: draw_best(system, texts, *more))
    monkeypatch.setattr(drawings, "artist_digests", lambda *given: {"model": "tiny"})
    monkeypatch.setattr(geneval, "Detector", CatInEverything)
    (tmp_path / "detector").mkdir()
    return tmp_path, asked


def run(place, *settings):
    given = [f"evaluation.geneval.prompts={place / 'metadata.jsonl'}", "evaluation.geneval.samples=2"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_stage(geneval.main, None, [TOY, f"run={place / 'run'}", *given, *settings])
    (path,) = re.findall(r"GenEval.*: (\S+/figures.json)", said.getvalue())
    return json.loads(Path(path).read_text()) | {"folder": Path(path).parent}


def test_without_prompts_there_are_no_figures_but_reasons(tmp_path, capsys):
    run_stage(geneval.main, None, [TOY, f"run={tmp_path / 'run'}"])
    assert capsys.readouterr().out == "GenEval: not run: evaluation.geneval.prompts is not set\n"
    figures = json.loads((tmp_path / "run" / "benchmarks" / "geneval" / "figures.json").read_text())
    assert figures["overall"] is None and figures["reasons"]["overall"].startswith(
        "not run: evaluation.geneval.prompts"
    )


def test_a_judge_that_is_not_there_is_a_mistake(place, capsys):
    place, _ = place
    with pytest.raises(SystemExit) as ended:
        run(place, "evaluation.geneval.detector=nowhere")
    assert ended.value.code == 2
    assert "evaluation.geneval.detector names nowhere, which is no folder" in capsys.readouterr().err


def test_drawings_are_laid_out_for_the_official_scorer_and_drawn_once(place):
    place, asked = place
    figures = run(place)
    (folder,) = (place / "run" / "benchmarks" / "geneval").glob("drawings-*")
    assert [json.loads((folder / f"0000{n}" / "metadata.jsonl").read_text()) for n in range(3)] == PROMPTS
    files = sorted(folder.glob("*/samples/*"))
    assert [path.name for path in files] == ["0000.png", "0001.png"] * 3
    assert files[0].read_bytes() != files[1].read_bytes(), "every sample has a seed of its own"
    assert asked == [prompt["prompt"] for prompt in PROMPTS for _ in range(2)]
    assert figures["overall"] is None and "the official scorer reads" in figures["reasons"]["overall"]
    before = files[3].read_bytes()
    asked.clear()
    files[3].unlink()
    assert run(place) == figures and asked == [], "nothing is left to do"
    shutil.rmtree(figures["folder"])
    run(place)
    assert asked == [PROMPTS[1]["prompt"]] and files[3].read_bytes() == before


def test_scores_by_the_official_rules(place, monkeypatch):
    place, asked = place
    blind = run(place, f"evaluation.geneval.detector={place / 'detector'}")
    assert blind["single_object"] == blind["counting"] == 1, "the unsure cat is not counted"
    assert blind["colors"] is None and blind["overall"] is None and blind["reasons"]["colors"].endswith("that is there")
    assert blind["reasons"]["position"] == "no such prompts are in the file"
    answers = iter(["red", "blue"])
    monkeypatch.setattr(geneval, "ColourJudge", lambda clip, colours: lambda picture, name, objects: [next(answers)])
    asked.clear()
    clip = tiny_clip(place / "clip")
    found = run(place, f"evaluation.geneval.detector={place / 'detector'}", f"evaluation.clip={clip}")
    assert asked == [] and found["colors"] == 0.5 and found["overall"] == pytest.approx(2.5 / 3)
    assert found["images_correct"] == pytest.approx(5 / 6) and found["prompts_correct"] == 1
    lines = (found["folder"] / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [result["correct"] for result in results] == [True] * 5 + [False]
    assert results[5]["reason"] == "cat is blue and not red" and json.loads(results[5]["metadata"]) == PROMPTS[2]
    assert json.loads(results[0]["details"]) == {"cat": [[0, 0, 8, 8, 0.95], [4, 4, 12, 12, 0.5]]}
    assert Image.open(results[0]["filename"]).size == (16, 16) and found["n"] == 6


def test_real_colours_go_through(place):
    place, _ = place
    clip = tiny_clip(place / "clip")
    found = run(place, f"evaluation.geneval.detector={place / 'detector'}", f"evaluation.clip={clip}")
    assert 0 <= found["colors"] <= 1 and found["setting"]["clip"].keys() == {"model.safetensors"}


def test_a_line_without_a_key_ends_with_one_line(place, capsys):
    place, _ = place
    (place / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a"}\n')
    with pytest.raises(SystemExit) as ended:
        run(place)
    assert ended.value.code == 2
    assert "metadata.jsonl, line 1: it has no 'include'" in capsys.readouterr().err
