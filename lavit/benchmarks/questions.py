"""Readers of sets of questions: VQAv2 and OK-VQA, GQA, VizWiz-VQA, TextVQA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavit.benchmarks.files import OfficialFile, SetFolder, named
from lavit.benchmarks.items import Item

ANSWERS = 10  # people who were asked, in all sets but GQA
COCO_IMAGES = {"val": "val2014", "test-dev": "test2015", "test2015": "test2015"}  # test-dev is a part of test2015


def read_vqa(folder: SetFolder, split: str) -> list[Item]:
    """VQAv2 (visualqa.org/download.html) and OK-VQA, which has its form: questions in one file, answers in another.

    OK-VQA's answers are the stemmed ones, which its evaluation compares.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    file = folder.read("questions")
    asked = file.take(file.content, "questions", list)
    ids = [file.take(entry, "question_id", int, "questions", n) for n, entry in enumerate(asked)]
    images = [file.take(entry, "image_id", int, "questions", n) for n, entry in enumerate(asked)]
    texts = [file.take(entry, "question", str, "questions", n) for n, entry in enumerate(asked)]
    answers = None
    if "answers" in folder.files:
        answers = _vqa_answers(folder.read("answers"), dict(zip(ids, images, strict=True)))
    names = {number: f"{COCO_IMAGES[split]}/COCO_{COCO_IMAGES[split]}_{number:012d}.jpg" for number in images}
    paths = folder.images(names.values())
    return [
        Item(number, paths[names[image]], text, *(((), {}) if answers is None else answers[number]))
        for number, image, text in zip(ids, images, texts, strict=True)
    ]


def read_gqa(folder: SetFolder, split: str) -> list[Item]:
    """``testdev_balanced_questions.json`` or ``val_balanced_questions.json``: questions by id, each with one answer.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    file = folder.read("questions", ids_as_keys=True)
    rows = []
    for number, entry in _by_id(file).items():
        types = file.take(entry, "types", dict, number)
        about = {name: file.take(types, name, str, number, "types") for name in ("structural", "semantic", "detailed")}
        answer = file.take(entry, "answer", str, number)
        image = f"{file.take(entry, 'imageId', str, number)}.jpg"
        rows.append((number, image, file.take(entry, "question", str, number), answer, about))
    paths = folder.images(row[1] for row in rows)
    return [Item(number, paths[image], text, (answer,), about) for number, image, text, answer, about in rows]


def read_vizwiz(folder: SetFolder, split: str) -> list[Item]:
    """``val.json`` or ``test.json``; a question's id is its image's name, since every image has one question.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    file = folder.read("questions")
    rows = []
    for n, entry in enumerate(_entries(file)):
        answers, about = (), {}
        if split != "test":
            given = file.take(entry, "answers", list, n)
            answers = _ten(file, [file.take(answer, "answer", str, n, "answers") for answer in given], n)
            about = {"answer_type": file.take(entry, "answer_type", str, n)}
            about["answerable"] = file.take(entry, "answerable", int, n)
            if about["answerable"] not in (0, 1):
                raise file.altered(f"[{n}].answerable is {about['answerable']} and neither 0 nor 1")
        rows.append((file.take(entry, "image", str, n), file.take(entry, "question", str, n), answers, about))
    paths = folder.images(row[0] for row in rows)
    return [Item(image, paths[image], text, answers, about) for image, text, answers, about in rows]


def read_textvqa(folder: SetFolder, split: str) -> list[Item]:
    """``TextVQA_0.5.1_val.json`` or ``TextVQA_0.5.1_test.json``.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    file = folder.read("questions")
    rows = []
    for n, entry in enumerate(file.take(file.content, "data", list)):
        answers: tuple[str, ...] = ()
        if split != "test":
            answers = _ten(file, file.take(entry, "answers", list, "data", n), "data", n)
        number = file.take(entry, "question_id", int, "data", n)
        image = f"{file.take(entry, 'image_id', str, 'data', n)}.jpg"
        rows.append((number, image, file.take(entry, "question", str, "data", n), answers))
    paths = folder.images(row[1] for row in rows)
    return [Item(number, paths[image], text, answers, {}) for number, image, text, answers in rows]


def _vqa_answers(file: OfficialFile, asked: Mapping[int, int]) -> dict[int, tuple[tuple[str, ...], dict[str, str]]]:
    """Answers and types by question, of which ``asked`` has the images."""
    found: dict[int, tuple[tuple[str, ...], dict[str, str]]] = {}
    for n, entry in enumerate(file.take(file.content, "annotations", list)):
        place = ("annotations", n)
        number = file.take(entry, "question_id", int, *place)
        if number in found:
            raise file.altered(f"question {number} has two annotations")
        if number not in asked:
            raise file.altered(f"annotations[{n}] is of question {number}, which nobody asks")
        if file.take(entry, "image_id", int, *place) != asked[number]:
            raise file.altered(f"annotations[{n}] is of image {entry['image_id']}, its question of {asked[number]}")
        given = file.take(entry, "answers", list, *place)
        answers = _ten(file, [file.take(answer, "answer", str, *place, "answers") for answer in given], *place)
        found[number] = answers, {key: file.take(entry, key, str, *place) for key in ("answer_type", "question_type")}
    if bare := [number for number in asked if number not in found]:
        raise file.altered(f"questions {named(bare)} have no annotation")
    return found


def _ten(file: OfficialFile, answers: list[Any], *place: str | int) -> tuple[str, ...]:
    texts = file.texts(answers, *place, "answers")
    if len(texts) != ANSWERS:
        at = "".join(f"[{part}]" if isinstance(part, int) else part for part in place)
        raise file.altered(f"{at} has {len(texts)} answers and not {ANSWERS}")
    return texts


def _entries(file: OfficialFile) -> list[Any]:
    if type(file.content) is not list:
        raise file.altered("the file is no list")
    return file.content


def _by_id(file: OfficialFile) -> dict[str, Any]:
    if type(file.content) is not dict:
        raise file.altered("the file is no object with questions by id")
    return file.content
