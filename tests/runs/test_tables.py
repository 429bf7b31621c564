"""One table of what was measured, what others published, and what has not been run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import held_out, tables
from lavit.experiment import load_experiment
from lavit.runs import mark_done, read_json, write_json

TOY = Path(__file__).parents[2] / "configs" / "lavit" / "toy.yaml"


PLAN = {"beams": 2, "min_tokens": 8, "max_tokens": 36}
ASKED = {"captions": PLAN, "answers": PLAN | {"beams": 1}}


def put(run: Path, place: str, figures: dict) -> None:
    (run / place).mkdir(parents=True)
    write_json(run / place / "figures.json", figures)
    mark_done(run / place)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with figures of two sets, a split whose answers are kept, its own questions and no FID."""
    setting = {"set": "nocaps", "split": "val", "model": {}, "asked": ASKED}
    cider = {"cider": 1.2, "cider_interval": [1.1, 1.3]}
    put(tmp_path, "benchmarks/nocaps-val/aa", cider | {"n": 4500, "official_n": 4500, "setting": setting})
    put(tmp_path, "benchmarks/gqa-testdev/bb", {"accuracy": 0.4, "n": 5, "official_n": 50, "release": "mine",
                                                "setting": setting | {"set": "gqa", "split": "testdev"}})  # fmt: skip
    put(tmp_path, "benchmarks/nocaps-test/cc", {"n": 10600, "official_n": 10600, "reasons": {"score": "kept"},
                                                "setting": setting | {"split": "test"}})  # fmt: skip
    put(tmp_path, "eval/vqa", {"accuracy": 0.5, "question_only": 0.6, "majority": 0.4, "n": 4})
    drawn = {
        "clip_score": 21.5,
        "n": 8,
        "reasons": {"fid": "not run: no weights"},
        "setting": {"drawing": {"model": {}}},
    }
    put(tmp_path, "benchmarks/fid/dd", {"fid": None} | drawn)
    put(tmp_path, "benchmarks/fid/ee", drawn | {"fid": 30.5, "release": "mine"})
    write_json(
        tmp_path / "benchmarks" / "fid" / "figures.json", {"fid": None, "reasons": {"fid": "not run: nothing set"}}
    )
    return tmp_path


def test_published_figures_stand_in_columns_of_their_own(run):
    tables.main(load_experiment(TOY, [f"run={run}"]), run)
    text = (run / "benchmarks" / "table.md").read_text()
    head, line = (row for row in text.splitlines() if row.startswith(("| set ", "| NoCaps | val")))
    names, cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in (head, line))
    row = dict(zip(names, cells, strict=True))
    assert (
        row["measured here [95 %]"] == "120.0 [110.0, 130.0]"
        and row["items"] == "4,500"
        and row["model"] == "the run's, earlier weights"
    )
    assert row["LaVIT, LLaMA-7B (published)"] == "114.2" and row["Emu-13B (published)"] == ""
    assert all("published" in name for name in names[7:])
    assert row["setting"] == "aa: 2 beams, 8 to 36 tokens"
    page = (run / "benchmarks" / "table.html").read_text()
    assert "120.0 [110.0, 130.0]" in page and "<small>published, arXiv 2309.04669</small>" in page


def test_a_published_figure_stands_beside_one_of_the_same_split_rule_and_items_alone(run):
    put(run, "benchmarks/vqav2-val/dd", {
        "accuracy": 0.5, "accuracy_lemmatised": 0.6, "n": 7, "official_n": 7,
        "setting": {"set": "vqav2", "split": "val", "model": {}, "asked": ASKED}})  # fmt: skip
    lines = tables.benchmark_lines(load_experiment(TOY, [f"run={run}"]), run)
    shown = {(line.title, line.metric): sorted(line.published.values()) for line in lines}
    assert shown[("VQAv2", "accuracy, lemmatised")] == [52.0, 66.0, 68.2, 68.3] and shown[("VQAv2", "accuracy")] == []
    (gqa,) = (line for line in lines if line.split == "testdev")
    assert gqa.published == {} and gqa.items == "5 of 50" and gqa.model == "mine"


def test_a_run_without_questions_has_its_table(run):
    (run / "eval" / "vqa" / "figures.json").unlink()
    tables.main(load_experiment(TOY, [f"run={run}"]), run)
    assert "question_only" not in (run / "benchmarks" / "table.json").read_text()


def test_what_was_not_run_and_what_is_to_be_sent_in_are_told(run):
    tables.main(load_experiment(TOY, [f"run={run}"]), run)
    text, found = (run / "benchmarks" / "table.md").read_text(), read_json(run / "benchmarks" / "table.json")
    own = "the run's, earlier weights"
    assert f"| FID | {own} | dd | not run: no weights | 8 |" in text and f"| CLIP score | {own} | dd | 21.500 |" in text
    assert "| FID | mine | ee | 30.500 | 8 |" in text and "nothing set" not in text
    assert found["to_send_in"] == ["benchmarks/nocaps-test/cc/submission.json"]
    assert {row["set"] for row in found["not_run"]} == {about.title for about in tables.SETS.values()} - {
        "NoCaps", tables.SETS["gqa"].title
    }  # fmt: skip
    assert "| Answers right | 0.500 | majority 0.400, question only 0.600 |" in text
    measured = {line["title"]: line["value"] for line in found["sets"]}
    assert measured == {"NoCaps": 120.0, tables.SETS["gqa"].title: 40.0}


def test_evaluations_that_are_done_are_not_run_and_an_untrained_run_is_refused(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(held_out.subprocess, "call", lambda command, env: asked.append(command[2]) or 0)
    argv = [str(TOY), f"run={tmp_path}"]
    assert held_out.main(argv) == 2
    assert "eval/tokenizer needs extract" in capsys.readouterr().err and not asked
    for stage in ("extract", "pretrain", "decoder", "eval/caption"):
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / "done.json").write_text(json.dumps({}))
    assert held_out.main(argv) == 0
    assert sorted(asked) == ["eval.reconstruct", "eval.text_to_image", "eval.vqa", "tokenizer.evaluate"]


def test_a_run_of_nothing_says_so(tmp_path):
    tables.main(load_experiment(TOY, [f"run={tmp_path}"]), tmp_path)
    text = (tmp_path / "benchmarks" / "table.md").read_text()
    assert "Not run, for want of data:" in text and "measured here" not in text
