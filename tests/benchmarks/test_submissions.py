import dataclasses
import json

import pytest

from lavit.benchmarks.sets import SETS, read_benchmark, read_submission, write_submission
from tests.benchmarks.official import WRITERS

FORMS = {
    "coco_captions": [{"image_id": 391895, "caption": "text 0"}],
    "nocaps": [{"image_id": 0, "caption": "text 0"}, {"image_id": 1, "caption": "text 1"},
               {"image_id": 7, "caption": "text 2"}],
    "flickr30k": [{"image_id": 1, "caption": "text 0"}],
    "vqav2": [{"question_id": 42000, "answer": "text 0"}, {"question_id": 42001, "answer": "text 1"},
              {"question_id": 73000, "answer": "text 2"}],
    "gqa": [{"questionId": "201307251", "prediction": "text 0"}, {"questionId": "05515938", "prediction": "text 1"}],
    "vizwiz": [{"image": "VizWiz_val_00000000.jpg", "answer": "text 0"},
               {"image": "VizWiz_val_00000001.jpg", "answer": "text 1"}],
    "scienceqa": {"results": {"5": -1}},
    "textvqa": [{"question_id": 34602, "answer": "text 0"}],
}  # fmt: skip
FORMS["okvqa"] = FORMS["vqav2"]


@pytest.fixture
def vqav2(tmp_path):
    return read_benchmark("vqav2", WRITERS["vqav2"](tmp_path))


@pytest.mark.parametrize("name", SETS)
def test_the_owners_form(name, tmp_path):
    benchmark = read_benchmark(name, WRITERS[name](tmp_path))
    predictions = {item.id: f"text {n}" for n, item in enumerate(benchmark.items)}
    path = tmp_path / "submission.json"
    write_submission(benchmark, predictions, path)
    assert json.loads(path.read_text()) == FORMS[name]
    assert read_submission(benchmark, path) == ({"5": ""} if name == "scienceqa" else predictions)


def test_texts_stay_as_they_are(vqav2, tmp_path):
    predictions = {42000: "", 42001: "да, はい\n🙂", 73000: ' "quoted" '}
    write_submission(vqav2, predictions, str(tmp_path / "s.json"))
    assert read_submission(vqav2, tmp_path / "s.json") == predictions


def test_results_are_indices_of_choices(tmp_path):
    benchmark = read_benchmark("scienceqa", WRITERS["scienceqa"](tmp_path), "test")
    path = tmp_path / "s.json"
    write_submission(benchmark, {"4": "B", "5": "cat"}, path)
    assert json.loads(path.read_text()) == {"results": {"5": 0, "4": 1}}
    assert read_submission(benchmark, path) == {"5": "cat", "4": "Idaho"}
    for text, error in [
        ('{"results": {"5": 2, "4": 0}}', "the result of '5' is 2, its choices are 0 to 1"),
        ('{"results": {"5": "A", "4": 0}}', "the result of '5' is 'A'"),
        ('{"results": {"5": 0}}', "'4' of scienceqa .* are missing"),
        ('{"results": {"5": 0, "4": 0, "9": 0}}', "has no '9'"),
        ('{"results": {"5": 0, "4": 0, "5": 0}}', "the key '5' stands twice"),
        ('{"4": 0}', "is no submission of scienceqa"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            read_submission(benchmark, path)


def test_vizwiz_is_also_sent_how_sure_an_answer_is(tmp_path):
    benchmark = read_benchmark("vizwiz", WRITERS["vizwiz"](tmp_path))
    path, predictions = tmp_path / "s.json", {item.id: "cat" for item in benchmark.items}
    shares = {item.id: n / 4 for n, item in enumerate(benchmark.items)}
    write_submission(benchmark, predictions, path, shares)
    rows = json.loads(path.read_text())
    assert rows == [row | {"answerable": n / 4} for n, row in enumerate(rows)] and len(rows) == len(shares) > 1
    assert read_submission(benchmark, path) == predictions
    shares.popitem()
    with pytest.raises(ValueError, match="the shares of answerability: .* are missing"):
        write_submission(benchmark, predictions, path, shares)


def test_predictions_for_all_items_and_no_others(vqav2, tmp_path):
    good = dict.fromkeys((42000, 42001, 73000), "yes")
    path = tmp_path / "s.json"
    for predictions, error in [
        ({42000: "yes"}, r"42001, 73000 of vqav2 \(val, 3 items\) are missing"),
        (good | {1: "no", "42000": "no"}, r"vqav2 \(val, 3 items\) has no 1, '42000'"),
        (good | {42001: None}, "the predictions of 42001 are no texts"),
    ]:
        with pytest.raises(ValueError, match=error):
            write_submission(vqav2, predictions, path)
    assert not path.exists()


def test_a_part_of_the_items_has_a_submission_of_its_own(vqav2, tmp_path):
    part = dataclasses.replace(vqav2, items=vqav2.items[:1])
    write_submission(part, {42000: "yes"}, tmp_path / "s.json")
    assert read_submission(part, tmp_path / "s.json") == {42000: "yes"}
    with pytest.raises(ValueError, match="42001, 73000 of vqav2 .* are missing"):
        read_submission(vqav2, tmp_path / "s.json")


@pytest.mark.parametrize("rows, error", [
    ([(42000, "a"), (42001, "a"), (42000, "b")], "has 42000 twice"),
    ([(42000, "a"), (42001, "a")], "73000 of vqav2 .* are missing"),
    ([(42000, "a"), (42001, "a"), (73000, "a"), (5, "a")], "vqav2 .* has no 5"),
    ([("42000", "a")], "entry 0 is not of the form"),
    ([(42000, 1)], "entry 0 is not of the form .* 'answer': 'a text'"),
])  # fmt: skip
def test_bad_submissions(rows, error, vqav2, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"question_id": number, "answer": text} for number, text in rows]))
    with pytest.raises(ValueError, match=error):
        read_submission(vqav2, path)


def test_no_submission(vqav2, tmp_path):
    with pytest.raises(ValueError, match="no file .*s.json; write a submission first"):
        read_submission(vqav2, tmp_path / "s.json")
    (tmp_path / "s.json").write_text("[{]")
    with pytest.raises(ValueError, match="s.json is no submission"):
        read_submission(vqav2, tmp_path / "s.json")
    (tmp_path / "s.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="entry 0 is not of the form"):
        read_submission(vqav2, tmp_path / "s.json")
