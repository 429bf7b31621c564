"""A handful of entries of every set, in the form and under the names of the official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEN = ["yes"] * 6 + ["no", "", "да", "はい"]


def write(folder: Path, files: dict[str, Any], images: tuple[str, ...] = ()) -> Path:
    """Write files as JSON, and empty pictures: no reader opens them."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def sentences(*texts: str) -> list[dict]:
    return [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": n} for n, text in enumerate(texts)]


def coco(folder: Path) -> Path:
    rows = [("val2014", 391895, "test", "A man. ", "Ein Mann"), ("val2014", 42, "restval", "A shoe"),
            ("train2014", 9, "train", "A meal"), ("val2014", 60623, "val", "A girl")]  # fmt: skip
    images = [
        {"filepath": place, "sentids": [0], "filename": f"COCO_{place}_{number:012d}.jpg", "imgid": n, "split": split,
         "sentences": sentences(*texts), "cocoid": number}
        for n, (place, number, split, *texts) in enumerate(rows)
    ]  # fmt: skip
    names = tuple(f"{image['filepath']}/{image['filename']}" for image in images)
    return write(folder, {"dataset_coco.json": {"images": images, "dataset": "coco"}}, names)


def flickr30k(folder: Path) -> Path:
    images = [
        {"sentids": [n], "imgid": n, "sentences": sentences(f"caption {n}"), "split": split, "filename": name}
        for n, (split, name) in enumerate(
            [("train", "1000092795.jpg"), ("test", "1007129816.jpg"), ("val", "1018148011.jpg")]
        )
    ]
    file = {"images": images, "dataset": "flickr30k"}
    return write(
        folder, {"dataset_flickr30k.json": file}, tuple(f"flickr30k-images/{image['filename']}" for image in images)
    )


def nocaps(folder: Path) -> Path:
    def image(number: int, name: str, **more: str) -> dict:
        return {"id": number, "open_images_id": name, "height": 4, "width": 4, "file_name": f"{name}.jpg", "license": 0,
                "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}.jpg", **more}  # fmt: skip

    info = {"licenses": [], "info": {"url": "http://nocaps.org"}}
    val = [image(0, "0013ea2087020901", domain="in-domain"), image(1, "0036e6e93faba1c2", domain="near-domain"),
           image(7, "00394f0c39e3c18b", domain="out-domain")]  # fmt: skip
    captions = [(0, "A baby."), (7, "An oud"), (0, "A child"), (1, "Ein Teich")]
    annotations = [{"image_id": number, "id": n, "caption": text} for n, (number, text) in enumerate(captions)]
    files = {
        "nocaps_val_4500_captions.json": {**info, "images": val, "annotations": annotations},
        "nocaps_test_image_info.json": {**info, "images": [image(3, "000d9eac8a1a5a5a")]},
    }
    return write(folder, files, (*(f"val/{entry['file_name']}" for entry in val), "test/000d9eac8a1a5a5a.jpg"))


def _vqa(questions: str, answers: str, folder: Path, types: tuple[str, str]) -> Path:
    asked = [(42, "Is it a shoe?", 42000), (42, "Чья?", 42001), (73, "How many?", 73000)]
    file = {"task_type": "Open-Ended", "data_subtype": "val2014", "questions": [
        {"image_id": image, "question": text, "question_id": number} for image, text, number in asked]}  # fmt: skip
    annotations = [
        {"question_type": types[0], "multiple_choice_answer": "yes", "image_id": image, "answer_type": types[1],
         "question_id": number, "answers": [{"answer": text, "raw_answer": text, "answer_confidence": "yes",
                                             "answer_id": n} for n, text in enumerate(TEN, 1)]}
        for image, _, number in reversed(asked)
    ]  # fmt: skip
    images = tuple(f"val2014/COCO_val2014_{image:012d}.jpg" for image in (42, 73))
    return write(folder, {questions: file, answers: {"annotations": annotations}}, images)


def vqav2(folder: Path) -> Path:
    test = {"questions": [{"image_id": 1, "question": "What?", "question_id": 1000}]}
    write(folder, {"v2_OpenEnded_mscoco_test-dev2015_questions.json": test,
                   "v2_OpenEnded_mscoco_test2015_questions.json": test},
          ("test2015/COCO_test2015_000000000001.jpg",))  # fmt: skip
    names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    return _vqa(*names, folder, ("is it a", "yes/no"))


def okvqa(folder: Path) -> Path:
    names = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    return _vqa(*names, folder, ("eight", "other"))


def gqa(folder: Path) -> Path:
    def entry(image: str, text: str, answer: str, structural: str) -> dict:
        return {"semantic": [], "entailed": [], "equivalent": [], "question": text, "imageId": image,
                "isBalanced": True, "groups": {"global": None, "local": "06-w"}, "answer": answer,
                "semanticStr": "", "annotations": {}, "fullAnswer": f"It is {answer}.",
                "types": {"detailed": "weatherVerify", "semantic": "attr", "structural": structural}}  # fmt: skip

    file = {"201307251": entry("n161313", "Is it overcast?", "no", "verify"),
            "05515938": entry("n161313", "What is it?", "pipe", "query")}  # fmt: skip
    files = {
        "testdev_balanced_questions.json": file,
        "val_balanced_questions.json": {"1": entry("2", "?", "a", "query")},
    }
    return write(folder, files, ("images/n161313.jpg", "images/2.jpg"))


def vizwiz(folder: Path) -> Path:
    def entry(name: str, answerable: int, kind: str) -> dict:
        answers = [{"answer": text, "answer_confidence": "maybe"} for text in TEN]
        return {"image": name, "question": "What is it?", "answers": answers, "answer_type": kind,
                "answerable": answerable}  # fmt: skip

    val = [entry("VizWiz_val_00000000.jpg", 1, "other"), entry("VizWiz_val_00000001.jpg", 0, "unanswerable")]
    test = [{"image": "VizWiz_test_00000000.jpg", "question": "Colour?"}]
    images = ("val/VizWiz_val_00000000.jpg", "val/VizWiz_val_00000001.jpg", "test/VizWiz_test_00000000.jpg")
    return write(folder, {"Annotations/val.json": val, "Annotations/test.json": test}, images)


def scienceqa(folder: Path) -> Path:
    def problem(split: str, image: str | None, choices: list[str], answer: int) -> dict:
        return {"question": "Which?", "choices": choices, "answer": answer, "hint": "A hint.", "image": image,
                "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics",
                "category": "Magnets", "skill": "Compare", "lecture": "", "solution": "", "split": split}  # fmt: skip

    problems = {
        "4": problem("test", None, ["Ohio", "Idaho"], 1),
        "5": problem("test", "image.png", ["cat", "b"], 0),
        "1": problem("train", "image.png", ["x", "y"], 0),
        "6": problem("val", "image.png", ["x", "y"], 0),
    }
    splits = {"train": ["1"], "val": ["6"], "test": ["5", "4"], "minitest": ["4"]}
    return write(
        folder,
        {"problems.json": problems, "pid_splits.json": splits},
        ("images/test/5/image.png", "images/val/6/image.png"),
    )


def textvqa(folder: Path) -> Path:
    entry = {"question": "what brand?", "image_id": "003a8ae2ef43b901", "image_classes": ["Clothing"], "image_width": 4,
             "flickr_original_url": "", "flickr_300k_url": "", "image_height": 4, "question_tokens": [],
             "question_id": 34602, "set_name": "val"}  # fmt: skip
    test = entry | {"image_id": "00000b4dcff7f799", "question_id": 39602, "set_name": "test"}
    files = {"TextVQA_0.5.1_val.json": {"dataset_type": "val", "data": [entry | {"answers": TEN}]},
             "TextVQA_0.5.1_test.json": {"dataset_type": "test", "data": [test]}}  # fmt: skip
    return write(folder, files, ("train_images/003a8ae2ef43b901.jpg", "test_images/00000b4dcff7f799.jpg"))


WRITERS = {writer.__name__: writer for writer in (nocaps, flickr30k, vqav2, okvqa, gqa, vizwiz, scienceqa, textvqa)}
WRITERS["coco_captions"] = coco
