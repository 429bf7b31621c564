"""Systems side by side: the same pictures and questions, figures by hand, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import compare
from eval.compare import Compared, markdown, rows_of
from lavit.experiment import Experiment

TRAIN = ["animals: cat", "animals: dog", "food: bread"]


class Asked:
    """Training pictures with questions."""

    def __len__(self) -> int:
        return 2

    def describe(self, number: int) -> tuple[str, dict]:
        return "", {"questions": [{"question": "what colour?", "answers": ["red"]}]}


def system(run: Path, name: str, captions: dict[int, str], answers: dict[int, str], shards: str = "a") -> Compared:
    """One that wrote these captions and answers, by the numbers of the pictures, which are all of animals and red."""
    for part in ("captions", "vqa"):
        (run / "data" / part).mkdir(parents=True)
        (run / "data" / part / "index.json").write_text(json.dumps({"shards": {"x.tar": shards}}))
    truth = {n: ("animals: fox" if n % 2 else "food: soup") for n in captions}
    said = [{"number": n, "truth": truth[n], "written": w, "nearest": "animals: cat"} for n, w in captions.items()]
    asked = [{"number": n, "question": "what colour?", "answers": ["red"], "given": a} for n, a in answers.items()]
    work = SimpleNamespace(
        run=run,
        experiment=Experiment(),
        pictures=lambda part, split: SimpleNamespace(captions=TRAIN, distinct=lambda limit: [0, 1, 2]),
        shards=lambda part, split: Asked(),
    )
    return Compared(name, work, {"samples": said}, {"samples": asked})


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(compare, "costs", lambda work: {"tokens": 16.0, "trained": 1234, "seconds": 60.0})


def test_figures_are_of_the_pictures_and_questions_that_all_have(tmp_path):
    good = {n: ("animals: fox" if n % 2 else "food: soup") for n in range(8)}
    bad = {n: "food: soup" for n in range(2, 6)}
    one = system(tmp_path / "one", "good", good, dict.fromkeys(range(6), "red"))
    other = system(tmp_path / "other", "bad", bad, {n: "red" if n == 2 else "blue" for n in range(2, 10)})
    rows = rows_of([one, other])
    assert rows["captions"]["n"] == 4 and rows["questions"]["n"] == 4
    assert rows["systems"]["good"]["category_accuracy"] == 1.0 and rows["systems"]["good"]["vqa"] == 1.0
    assert rows["systems"]["bad"]["category_accuracy"] == 0.5 and rows["systems"]["bad"]["vqa"] == 0.25
    assert rows["captions"]["nearest"] == 0.5 and rows["questions"]["question_only"] == 1.0
    table = markdown(rows)
    assert "| good | 1.000 |" in table and "1,234" in table
    assert "bad: the class of its captions is at chance." in table
    assert "good: the class of its captions" not in table
    assert "bad: its answers are no better than the question alone gives." in table


def test_captions_without_a_class_leave_its_cells_empty(tmp_path):
    one, other = (system(tmp_path / name, name, {0: "a", 1: "b"}, {0: "red"}) for name in ("one", "other"))
    rows = rows_of([one, other])
    for row in rows["systems"].values():
        row |= {"category_accuracy": None, "category_shuffled": None}
    rows["captions"] |= {"nearest": None, "majority": None}
    table = markdown(rows)
    assert "| one |  |  | " in table and "class of its captions" not in table


def test_what_cannot_be_compared(tmp_path, capsys):
    one = system(tmp_path / "one", "one", {0: "x: y"}, {0: "red"})
    far = system(tmp_path / "far", "far", {1: "x: y"}, {0: "red"})
    with pytest.raises(ValueError, match="no captions in common"):
        rows_of([one, far])
    with pytest.raises(ValueError, match="have other captions: compare runs whose data sections are the same"):
        rows_of([one, system(tmp_path / "other", "other", {0: "x: y"}, {0: "red"}, shards="b")])
    assert compare.main(["configs/teal/speech.yaml"] * 2) == 2
    assert "has no questions (data.vqa is null)" in capsys.readouterr().err
    assert compare.main(["configs/teal/toy.yaml"]) == 2
    assert "two configurations or more" in capsys.readouterr().err
    path = tmp_path / "toy.yaml"
    path.write_text(f"base: {Path('configs/teal/toy.yaml').resolve()}\nrun: {tmp_path / 'nothing'}\n")
    assert compare.main([str(path), str(path)]) == 2
    assert "has no eval/caption/figures.json; run its demo" in capsys.readouterr().err
