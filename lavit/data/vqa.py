"""Sources of questions about pictures: easy-vqa, and VQAv2's JSON files."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavit.data.assets import fetch, licence_of
from lavit.data.examples import Example, Reading, Skip, SourceError
from lavit.data.images import SUFFIXES


@dataclass
class EasyVqaSource:
    """The easy-vqa package: 64 x 64 generated pictures of one shape each, official train and test split.

    Args:
        train_images: the most pictures of the official training split, its first ones; the test split stays whole.
    """

    train_images: int | None = None


@dataclass
class VqaV2Files:
    """One official split of VQAv2.

    Args:
        images: folder of the COCO pictures.
        questions: ``v2_OpenEnded_mscoco_*_questions.json``.
        annotations: ``v2_mscoco_*_annotations.json``, ten answers a question; none for a split without answers.
    """

    images: str
    questions: str
    annotations: str | None = None


@dataclass
class VqaV2Source:
    """VQAv2, or any set in its format; at least one of its official splits.

    Args:
        licence: what is recorded with each example.
    """

    train: VqaV2Files | None = None
    validation: VqaV2Files | None = None
    test: VqaV2Files | None = None
    licence: str = "CC-BY-4.0"


def read_easy_vqa(source: EasyVqaSource) -> Reading:
    """Every picture of easy-vqa with its questions; each has one answer.

    Raises:
        AssetError: the package cannot be fetched.
    """
    folder = fetch("easy-vqa") / "easy_vqa" / "data"
    train = _easy_vqa_split(folder / "train", "train")[: source.train_images]
    examples = train + _easy_vqa_split(folder / "test", "test")
    return Reading(examples, [], {"easy-vqa": licence_of("easy-vqa")})


def _easy_vqa_split(folder: Path, split: str) -> list[Example]:
    questions: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for index, (question, answer, image) in enumerate(json.loads((folder / "questions.json").read_text())):
        questions[image].append({"id": f"{split}-{index}", "question": question, "answers": [answer]})
    meta = _meta("easy-vqa", licence_of("easy-vqa")["licence"], split)
    return [
        Example(
            f"easy-vqa-{split}-{image:06d}",
            (folder / "images" / f"{image}.png").read_bytes,
            "",
            {**meta, "concept": f"easy-vqa {split} {image}", "questions": asked},
        )
        for image, asked in sorted(questions.items())
    ]


def read_vqav2(source: VqaV2Source) -> Reading:
    """Pictures with their questions and ten answers each, by official split.

    Raises:
        SourceError: no split is given, a file is missing or not of this format.
    """
    splits = {name: getattr(source, name) for name in ("train", "validation", "test")}
    if not any(splits.values()):
        raise SourceError("vqav2: set at least one of train, validation, test to its images and questions")
    examples: list[Example] = []
    skips: list[Skip] = []
    for split, files in splits.items():
        if files is not None:
            read, left_out = _vqav2_split(files, split, source.licence)
            examples += read
            skips += left_out
    licence = {"package": "your own files", "version": "", "licence": source.licence, "what": "VQAv2 format"}
    return Reading(examples, skips, {"vqav2": licence})


def _vqav2_split(files: VqaV2Files, split: str, licence: str) -> tuple[list[Example], list[Skip]]:
    folder = Path(files.images)
    if not folder.is_dir():
        raise SourceError(f"vqav2.{split}.images: no folder {folder}")
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    by_id = {int(digits): path for stem, path in pictures.items() if (digits := stem.rpartition("_")[2]).isdigit()}
    answers = _vqav2_answers(files.annotations) if files.annotations else {}
    questions: dict[int, list[dict[str, Any]]] = defaultdict(list)
    skips: list[Skip] = []
    for item in _items(files.questions, "questions", ("question_id", "image_id", "question")):
        if files.annotations and item["question_id"] not in answers:
            skips.append(Skip(f"vqav2 question {item['question_id']}", "no annotation for it"))
            continue
        given = answers.get(item["question_id"], [])
        asked = {"id": str(item["question_id"]), "question": item["question"], "answers": given}
        questions[item["image_id"]].append(asked)
    examples: list[Example] = []
    for image, asked in sorted(questions.items()):
        if image not in by_id:
            skips.append(Skip(f"vqav2 image {image}", f"not in {folder}"))
            continue
        meta = {**_meta("vqav2", licence, split), "concept": f"coco {image}", "questions": asked}
        examples.append(Example(f"vqav2-{split}-{image:012d}", by_id[image].read_bytes, "", meta))
    return examples, skips


def _vqav2_answers(path: str) -> dict[int, list[str]]:
    items = _items(path, "annotations", ("question_id", "answers"))
    return {item["question_id"]: [answer["answer"] for answer in item["answers"]] for item in items}


def _items(path: str, name: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        items = json.loads(Path(path).read_text(encoding="utf-8"))[name]
        missing = next((key for item in items for key in needed if key not in item), None)
    except FileNotFoundError:
        raise SourceError(f"vqav2: no file {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"vqav2: {path} is not a VQAv2 {name} file: {error!r}") from None
    if missing:
        raise SourceError(f"vqav2: {path}: an item of '{name}' has no '{missing}'")
    return items


def _meta(source: str, licence: str, split: str) -> dict[str, Any]:
    return {
        "source": source,
        "licence": licence,
        "language": "en",
        "tags": [],
        "group": source,
        "style": source,
        "official_split": split,
    }
