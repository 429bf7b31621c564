"""Standard sets with a tiny random system: what is asked, what stays when it is cut, what ranks do, what is sent in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval import benchmark
from eval.scoring import score
from lavit.benchmarks.items import Benchmark, Item
from lavit.data.images import ImageError
from lavit.experiment import Experiment, load_experiment
from lavit.runs import read_json
from tests.benchmarks import official

TOY = Path(__file__).parents[2] / "configs" / "lavit" / "toy.yaml"
PLANS = [f"benchmarks.{name}={{max_tokens: 4, min_tokens: 1, beams: 2}}" for name in ("captions", "answers")]


@pytest.fixture
def writer(system, monkeypatch):
    """The tiny system in the place of a run's; it counts the pictures that it is shown, and fails when it is to."""
    shown: list[Path] = []
    see = type(system).see

    def counted(its, images):
        if system.fail_at is not None and len(shown) >= system.fail_at:
            raise KeyboardInterrupt
        shown.extend(images)
        return see(its, images)

    monkeypatch.setattr(type(system), "see", counted)
    monkeypatch.setattr(system, "fail_at", None, raising=False)
    monkeypatch.setattr(system, "shown", shown, raising=False)
    monkeypatch.setattr(benchmark, "open_writer", lambda experiment, run: system)
    monkeypatch.setattr(benchmark, "writer_digests", lambda experiment, run: {"model": "0"})
    monkeypatch.setattr(benchmark, "score", words_a_text)  # the real one starts Java twice
    return system


def words_a_text(items: Benchmark, predictions: dict[int | str, str], seed: int, answerable: dict | None) -> dict:
    """In the place of a score."""
    return {"words": sum(len(predictions[item.id].split()) for item in items.items) / len(items.items)}


def pictured(folder: Path) -> Path:
    """The set's empty files become pictures, each of its own."""
    for number, path in enumerate(sorted(folder.rglob("*.[jp][pn]g"))):
        noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return folder


def experiment_of(run: Path, name: str, folder: Path, *settings: str) -> Experiment:
    return load_experiment(TOY, [f"run={run}", f"benchmarks.data={{{name}: {folder}}}", *PLANS, *settings])


def scored(run: Path, name: str, folder: Path, *settings: str) -> dict:
    """The figures of a set, with the folder that they are in."""
    before = set(run.glob("benchmarks/*/*/figures.json"))
    benchmark.main(experiment_of(run, name, folder, *settings), run)
    (path,) = set(run.glob("benchmarks/*/*/figures.json")) - before
    return read_json(path) | {"folder": path.parent}


def test_captions_are_written_scored_and_ready_to_be_sent_in(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "score", score)
    figures = scored(tmp_path / "run", "nocaps", pictured(official.nocaps(tmp_path / "set")))
    assert figures["n"] == 3 and figures["official_n"] == 4500
    assert figures["cider"] >= 0 and len(figures["cider_interval"]) == 2
    assert figures["setting"]["asked"]["captions"]["beams"] == 2 and figures["environment"]["versions"]["torch"]
    sent = json.loads((figures["folder"] / "submission-part.json").read_text())
    assert [line["image_id"] for line in sent] == [0, 1, 7]
    assert [line["written"] for line in figures["samples"]] == [line["caption"] for line in sent]
    alone = writer.caption(str(writer.shown[1]), experiment_of(tmp_path, "nocaps", tmp_path).benchmarks.captions)
    assert sent[1]["caption"] == alone, "as the system captions it by itself"


def test_what_was_cut_goes_on_and_ends_as_one_that_was_not(writer, tmp_path):
    folder = pictured(official.nocaps(tmp_path / "set"))
    whole = scored(tmp_path / "whole", "nocaps", folder, "benchmarks.batch=1")
    writer.shown.clear()
    writer.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "cut", "nocaps", folder, "benchmarks.batch=1")
    (lines,) = (tmp_path / "cut").glob("benchmarks/*/*/predictions-0.jsonl")
    assert len(lines.read_text().splitlines()) == 2
    lines.write_bytes(lines.read_bytes()[:-9] + "д".encode()[:1])  # the machine went down within a line and a letter
    writer.shown.clear()
    writer.fail_at = None
    cut = scored(tmp_path / "cut", "nocaps", folder, "benchmarks.batch=1")
    assert len(writer.shown) == 2, "the first is not asked again, the second is"
    ours, theirs = ((f["folder"] / "submission-part.json").read_bytes() for f in (cut, whole))
    assert ours == theirs and cut["words"] == whole["words"]
    benchmark.main(experiment_of(tmp_path / "cut", "nocaps", folder, "benchmarks.batch=1"), tmp_path / "cut")
    assert len(writer.shown) == 2, "what is done is not done again"


def test_texts_with_any_line_ends_and_in_any_script_are_kept(writer, tmp_path, monkeypatch):
    odd = ["a\u2028b\u0085c", "да\n", ""]
    monkeypatch.setattr(type(writer), "write_texts", lambda its, prompts, plan, seeds: odd[: len(prompts)])
    figures = scored(tmp_path / "run", "nocaps", pictured(official.nocaps(tmp_path / "set")))
    assert [line["written"] for line in figures["samples"]] == odd


def test_a_hint_that_is_too_long_is_left_out_and_counted(writer, tmp_path):
    folder = pictured(official.scienceqa(tmp_path / "set"))
    problems = json.loads((folder / "problems.json").read_text())
    for problem in problems.values():
        problem["hint"] = "a cat " * 200
    (folder / "problems.json").write_text(json.dumps(problems))
    figures = scored(tmp_path / "run", "scienceqa", folder, "benchmarks.choices=letters")
    assert figures["without_hint"] == figures["n"]


def test_room_is_left_for_the_longest_choice_where_choices_are_scored(writer, tmp_path):
    folder = pictured(official.scienceqa(tmp_path / "set"))
    problems = json.loads((folder / "problems.json").read_text())
    for problem in problems.values():
        problem["hint"] = "a " * 10
        problem["choices"] = ["a", "b " * 14]
    (folder / "problems.json").write_text(json.dumps(problems))
    figures = scored(tmp_path / "run", "scienceqa", folder)
    assert figures["without_hint"] == figures["n"]


def test_what_a_missing_program_left_out_is_measured_when_it_is_there(writer, tmp_path, monkeypatch):
    folder, run = pictured(official.nocaps(tmp_path / "set")), tmp_path / "run"
    monkeypatch.setattr(benchmark, "score", lambda *given: {"spice": None, "reasons": {"spice": "no CoreNLP"}})
    assert scored(run, "nocaps", folder)["spice"] is None
    monkeypatch.setattr(benchmark, "score", lambda *given: {"spice": 0.2})
    seen = len(writer.shown)
    benchmark.main(experiment_of(run, "nocaps", folder), run)
    (path,) = run.glob("benchmarks/*/*/figures.json")
    assert read_json(path)["spice"] == 0.2 and len(writer.shown) == seen


def test_ranks_share_the_pictures_and_another_number_of_them_goes_on(writer, tmp_path, monkeypatch):
    folder = pictured(official.vqav2(tmp_path / "set"))
    whole = scored(tmp_path / "one", "vqav2", folder)
    assert len(writer.shown) == 4 - 2, "a picture with two questions is seen once"
    experiment, run = experiment_of(tmp_path / "two", "vqav2", folder), tmp_path / "two"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        benchmark.main(experiment, run)
    (made,) = run.glob("benchmarks/*/*")
    assert [len((made / f"predictions-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)] == [2, 1]
    assert (made / "submission-part.json").read_bytes() == (whole["folder"] / "submission-part.json").read_bytes()


def test_the_first_rank_waits_for_what_the_others_still_write(writer, tmp_path, monkeypatch):
    folder = pictured(official.vqav2(tmp_path / "set"))
    whole = scored(tmp_path / "one", "vqav2", folder)
    (other,) = [item for n, item in enumerate(read_json(whole["folder"] / "submission-part.json")) if n == 2]
    line = json.dumps({"id": other["question_id"], "text": other["answer"]}) + "\n"

    def other_rank(seconds: float) -> None:
        """Writes half a line while the first rank waits, and the rest of it the next time."""
        (made,) = (tmp_path / "two").glob("benchmarks/*/*")
        assert not (made / "figures.json").exists()
        part = line[:9] if not (made / "predictions-1.jsonl").exists() else line[9:]
        with (made / "predictions-1.jsonl").open("a") as file:
            file.write(part)

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(sleep=other_rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ours = scored(tmp_path / "two", "vqav2", folder)
    assert (ours["folder"] / "submission-part.json").read_bytes() == (
        whole["folder"] / "submission-part.json"
    ).read_bytes()


def test_a_setting_has_its_own_folder_and_speed_is_none(writer, tmp_path):
    folder, run = pictured(official.nocaps(tmp_path / "set")), tmp_path / "run"
    first = scored(run, "nocaps", folder)
    benchmark.main(experiment_of(run, "nocaps", folder, "benchmarks.batch=3"), run)
    assert len(list(run.glob("benchmarks/*/*"))) == 1
    benchmark.main(experiment_of(run, "nocaps", folder, "benchmarks.choices=letters"), run)
    assert len(list(run.glob("benchmarks/*/*"))) == 1, "what captions have no part in"
    picture = folder / "val" / "00394f0c39e3c18b.jpg"
    picture.write_bytes(picture.read_bytes() + b" ")
    assert scored(run, "nocaps", folder)["setting"] != first["setting"], "another picture"
    for setting in ("benchmarks.caption=a photo of", "benchmarks.captions.beams=1", "benchmarks.limit=2", "seed=1"):
        other = scored(run, "nocaps", folder, setting)
        assert other["setting"] != first["setting"], setting


def test_choices_by_likelihood_and_by_letter(writer, tmp_path):
    folder = pictured(official.scienceqa(tmp_path / "set"))
    for way in ("likelihood", "letters"):
        figures = scored(tmp_path / way, "scienceqa", folder, f"benchmarks.choices={way}")
        assert figures["n"] == len(figures["samples"]) > 0
        if way == "likelihood":
            assert all(line["written"] for line in figures["samples"]), "one of the choices, whatever it is"


def test_choices_are_shown_with_letters_where_one_is_to_be_written():
    item = Item("1", None, "Which?", ("b",), {"choices": ("a", "b"), "hint": "Look."})
    assert benchmark.asked_text(item, letters=True) == "Look. Which? (A) a (B) b"
    assert benchmark.asked_text(item, letters=False, hint=False) == "Which?"


def test_what_cannot_be_answered_is_asked_for_first(writer, tmp_path, monkeypatch):
    folder = pictured(official.vizwiz(tmp_path / "set"))
    plain = scored(tmp_path / "plain", "vizwiz", folder, "benchmarks.answerable=null")
    assert all(line["written"] != benchmark.UNANSWERABLE for line in plain["samples"])
    monkeypatch.setattr(benchmark, "answerable", lambda writer, items, *rest: [0.9, 0.1][: len(items)])
    asked = scored(tmp_path / "asked", "vizwiz", folder)
    assert [line["written"] == benchmark.UNANSWERABLE for line in asked["samples"]] == [False, True]
    sent = json.loads((asked["folder"] / "submission-part.json").read_text())
    assert [line["answerable"] for line in sent] == [0.9, 0.1]
    sent = json.loads((plain["folder"] / "submission-part.json").read_text())
    assert all("answerable" not in line for line in sent)


def test_a_picture_that_is_none_is_named_and_what_was_written_stays(writer, tmp_path):
    folder = pictured(official.nocaps(tmp_path / "set"))
    (folder / "val" / "00394f0c39e3c18b.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="00394f0c39e3c18b.jpg"):
        scored(tmp_path / "run", "nocaps", folder, "benchmarks.batch=1")
    (lines,) = (tmp_path / "run").glob("benchmarks/*/*/predictions-0.jsonl")
    assert len(lines.read_text().splitlines()) == 2


def test_a_split_whose_answers_are_kept_is_written_and_not_scored(writer, tmp_path):
    folder = pictured(official.nocaps(tmp_path / "set"))
    figures = scored(tmp_path / "run", "nocaps", folder, "benchmarks.split=test")
    assert "words" not in figures and "owner keeps" in figures["reasons"]["score"]
    assert (figures["folder"] / "submission-part.json").is_file()


def test_a_set_of_another_task_is_refused_and_figures_are_told(writer, tmp_path, capsys):
    folder = pictured(official.nocaps(tmp_path / "set"))
    with pytest.raises(ValueError, match="NoCaps: `make eval-caption` scores it"):
        given = ("benchmarks.sets=[nocaps]", "benchmarks.task=question")
        benchmark.main(experiment_of(tmp_path / "run", "nocaps", folder, *given), tmp_path / "run")
    assert benchmark.said_of({"cider": 0.5, "cider_interval": [0.25, 1], "n": 2000}) == (
        "cider 0.5000 [0.2500, 1.0000] of 2,000 items, "
    )
    assert benchmark.said_of({"n": 3}) == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("benchmarks.question=What?", "benchmarks.question is 'What\\?'; write {} once"),
        ("benchmarks.choices=random", "benchmarks.choices is 'random'; choose likelihood or letters"),
        ("benchmarks.limit=-1", "benchmarks.limit is -1"),
        ("benchmarks.answers.beams=0", "benchmarks.answers.beams is 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path, setting, said):
    with pytest.raises(ValueError, match=said):
        experiment_of(tmp_path, "nocaps", tmp_path, setting)
