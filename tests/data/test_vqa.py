import json

import pytest

from lavit.data import vqa
from lavit.data.examples import SourceError
from lavit.data.vqa import EasyVqaSource, VqaV2Files, VqaV2Source, read_easy_vqa, read_vqav2


def test_easy_vqa_groups_questions_by_picture(tmp_path, monkeypatch):
    for split, items in {
        "train": [["q1", "red", 1], ["q2", "no", 0], ["q3", "yes", 1]],
        "test": [["q4", "no", 0]],
    }.items():
        folder = tmp_path / "easy_vqa" / "data" / split
        (folder / "images").mkdir(parents=True)
        (folder / "questions.json").write_text(json.dumps(items))
        for image in (0, 1):
            (folder / "images" / f"{image}.png").write_bytes(f"{split}{image}".encode())
    monkeypatch.setattr(vqa, "fetch", lambda name: tmp_path)
    examples, skips, licences = read_easy_vqa(EasyVqaSource())
    assert [example.key for example in examples] == [
        "easy-vqa-train-000000", "easy-vqa-train-000001", "easy-vqa-test-000000",
    ]  # fmt: skip
    second = examples[1]
    assert second.read() == b"train1" and second.caption == "" and second.meta["official_split"] == "train"
    assert second.meta["questions"] == [
        {"id": "train-0", "question": "q1", "answers": ["red"]},
        {"id": "train-2", "question": "q3", "answers": ["yes"]},
    ]
    assert len({example.meta["concept"] for example in examples}) == 3 and not skips
    assert licences["easy-vqa"]["licence"] == "MIT"


@pytest.fixture
def files(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "COCO_val2014_000000000042.jpg").write_bytes(b"42")
    (images / "list.txt").touch()
    questions = [
        {"question_id": 420, "image_id": 42, "question": "What?"},
        {"question_id": 421, "image_id": 42, "question": "Unanswered?"},
        {"question_id": 430, "image_id": 43, "question": "No picture?"},
    ]
    answers = [{"answer": "yes"}] * 7 + [{"answer": "no"}] * 3
    annotations = [{"question_id": 420, "answers": answers}, {"question_id": 430, "answers": answers}]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return VqaV2Files(str(images), str(tmp_path / "questions.json"), str(tmp_path / "annotations.json"))


def test_vqav2_keeps_ten_answers(files):
    examples, skips, _ = read_vqav2(VqaV2Source(validation=files))
    assert [example.key for example in examples] == ["vqav2-validation-000000000042"] and examples[0].read() == b"42"
    meta = examples[0].meta
    assert meta["official_split"] == "validation" and meta["concept"] == "coco 42"
    assert meta["questions"] == [{"id": "420", "question": "What?", "answers": ["yes"] * 7 + ["no"] * 3}]
    assert {skip.name for skip in skips} == {"vqav2 question 421", "vqav2 image 43"}


def test_vqav2_without_answers(files):
    files.annotations = None
    examples, _, _ = read_vqav2(VqaV2Source(test=files))
    assert [asked["answers"] for asked in examples[0].meta["questions"]] == [[], []]


def test_vqav2_mistakes(files, tmp_path):
    with pytest.raises(SourceError, match="set at least one of train, validation, test"):
        read_vqav2(VqaV2Source())
    with pytest.raises(SourceError, match="vqav2.train.images: no folder"):
        read_vqav2(VqaV2Source(train=VqaV2Files("gone", files.questions)))
    with pytest.raises(SourceError, match="no file gone.json"):
        read_vqav2(VqaV2Source(train=VqaV2Files(files.images, "gone.json")))
    with pytest.raises(SourceError, match="is not a VQAv2 questions file"):
        read_vqav2(VqaV2Source(train=VqaV2Files(files.images, files.annotations)))
    (tmp_path / "bad.json").write_text('{"questions": [{"question_id": 1}]}')
    with pytest.raises(SourceError, match="an item of 'questions' has no 'image_id'"):
        read_vqav2(VqaV2Source(train=VqaV2Files(files.images, str(tmp_path / "bad.json"))))
