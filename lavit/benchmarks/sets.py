"""Standard evaluation sets as their owners distribute them: read, and submissions written.

A set lies in one folder, into which the official archives were unpacked; ``SetInfo.files`` says which files are read of
each split. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lavit.benchmarks import submissions
from lavit.benchmarks.captions import read_coco, read_flickr30k, read_nocaps
from lavit.benchmarks.choices import read_scienceqa
from lavit.benchmarks.files import SetFolder, named
from lavit.benchmarks.items import Benchmark, Item
from lavit.benchmarks.questions import read_gqa, read_textvqa, read_vizwiz, read_vqa

Places = tuple[str, ...]


@dataclass(frozen=True)
class SetInfo:
    """What is known of a set without its files.

    Attributes:
        title: as its owner writes it.
        task: ``caption`` or ``question``.
        metric: ``caption``, ``vqa`` (agreement with ten people), ``gqa`` (equality), ``vizwiz`` (as ``vqa``, and
            whether there is an answer) or ``choice``.
        default: the split that is read unless another is named: the reported one; where the owner keeps the answers
            of that one, the one whose answers are public.
        where: the address to get the files from.
        counts: items of the whole official split.
        files: for each split what is looked for by role, paths below the folder of which the first that exists is
            read. The role ``images`` has folders that pictures are below.
        submission: keys of the id and the text in the list that the owner takes; None for results by question.
        reader: reads a split.
    """

    title: str
    task: str
    metric: str
    default: str
    where: str
    counts: Mapping[str, int]
    files: Mapping[str, Mapping[str, Places]]
    submission: tuple[str, str] | None
    reader: Callable[[SetFolder, str], list[Item]]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)


def _places(name: str, *folders: str) -> Places:
    """A file's places: the folder itself, ``annotations`` in it, and other folders."""
    return (name, *(f"{folder}/{name}" for folder in ("annotations", *folders)))


COCO_IMAGES = (".", "images", "coco")
CAPTION, ANSWER = ("image_id", "caption"), ("question_id", "answer")

SETS: dict[str, SetInfo] = {
    "coco_captions": SetInfo(
        title="COCO captions, Karpathy's split",
        task="caption",
        metric="caption",
        default="test",
        where="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip (captions) and "
        "https://cocodataset.org/#download (train2014, val2014)",
        counts={"test": 5_000, "val": 5_000, "train": 113_287},
        files=dict.fromkeys(
            ("test", "val", "train"),
            {"captions": _places("dataset_coco.json", "caption_datasets", "karpathy"), "images": COCO_IMAGES},
        ),
        submission=CAPTION,
        reader=read_coco,
    ),
    "nocaps": SetInfo(
        title="NoCaps",
        task="caption",
        metric="caption",
        default="val",
        where="https://nocaps.org/download",
        counts={"val": 4_500, "test": 10_600},
        files={
            "val": {
                "captions": _places("nocaps_val_4500_captions.json"),
                "images": ("val", "images", "validation", "images/val", "."),
            },
            "test": {
                "captions": _places("nocaps_test_image_info.json"),
                "images": ("test", "images", "images/test", "."),
            },
        },
        submission=CAPTION,
        reader=read_nocaps,
    ),
    "flickr30k": SetInfo(
        title="Flickr30k, Karpathy's split",
        task="caption",
        metric="caption",
        default="test",
        where="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip (captions) and "
        "https://shannon.cs.illinois.edu/DenotationGraph (images)",
        counts={"test": 1_000, "val": 1_014, "train": 29_000},
        files=dict.fromkeys(
            ("test", "val", "train"),
            {
                "captions": _places("dataset_flickr30k.json", "caption_datasets", "karpathy"),
                "images": ("flickr30k-images", "flickr30k_images", "images", "."),
            },
        ),
        submission=CAPTION,
        reader=read_flickr30k,
    ),
    "vqav2": SetInfo(
        title="VQAv2",
        task="question",
        metric="vqa",
        default="val",
        where="https://visualqa.org/download.html",
        counts={"val": 214_354, "test-dev": 107_394, "test2015": 447_793},
        files={
            "val": {
                "questions": _places("v2_OpenEnded_mscoco_val2014_questions.json", "questions"),
                "answers": _places("v2_mscoco_val2014_annotations.json"),
                "images": COCO_IMAGES,
            },
            "test-dev": {
                "questions": _places("v2_OpenEnded_mscoco_test-dev2015_questions.json", "questions"),
                "images": COCO_IMAGES,
            },
            "test2015": {
                "questions": _places("v2_OpenEnded_mscoco_test2015_questions.json", "questions"),
                "images": COCO_IMAGES,
            },
        },
        submission=ANSWER,
        reader=read_vqa,
    ),
    "okvqa": SetInfo(
        title="OK-VQA",
        task="question",
        metric="vqa",
        default="val",
        where="https://okvqa.allenai.org/download.html",
        counts={"val": 5_046},
        files={
            "val": {
                "questions": _places("OpenEnded_mscoco_val2014_questions.json", "questions"),
                "answers": _places("mscoco_val2014_annotations.json"),
                "images": COCO_IMAGES,
            }
        },
        submission=ANSWER,
        reader=read_vqa,
    ),
    "gqa": SetInfo(
        title="GQA",
        task="question",
        metric="gqa",
        default="testdev",
        where="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        counts={"testdev": 12_578, "val": 132_062},
        files={
            split: {
                "questions": _places(f"{split}_balanced_questions.json", "questions1.2", "questions"),
                "images": ("images", "allImages/images", "."),
            }
            for split in ("testdev", "val")
        },
        submission=("questionId", "prediction"),
        reader=read_gqa,
    ),
    "vizwiz": SetInfo(
        title="VizWiz-VQA",
        task="question",
        metric="vizwiz",
        default="val",
        where="https://vizwiz.org/tasks-and-datasets/vqa",
        counts={"val": 4_319, "test": 8_000},
        files={
            split: {
                "questions": _places(f"{split}.json", "Annotations"),
                "images": (split, f"images/{split}", "images", "."),
            }
            for split in ("val", "test")
        },
        submission=("image", "answer"),
        reader=read_vizwiz,
    ),
    "scienceqa": SetInfo(
        title="ScienceQA",
        task="question",
        metric="choice",
        default="test-img",
        where="https://github.com/lupantech/ScienceQA (data/scienceqa, tools/download.sh)",
        counts={"test-img": 2_017, "test": 4_241, "val-img": 2_097, "val": 4_241},
        files=dict.fromkeys(
            ("test-img", "test", "val-img", "val"),
            {
                "problems": ("problems.json", "data/scienceqa/problems.json"),
                "splits": ("pid_splits.json", "data/scienceqa/pid_splits.json"),
                "images": ("images", "data/scienceqa/images", "."),
            },
        ),
        submission=None,
        reader=read_scienceqa,
    ),
    "textvqa": SetInfo(
        title="TextVQA",
        task="question",
        metric="vqa",
        default="val",
        where="https://textvqa.org/dataset",
        counts={"val": 5_000, "test": 5_734},
        files={
            split: {
                "questions": _places(f"TextVQA_0.5.1_{split}.json"),
                "images": (images, f"images/{images}", "images", "."),
            }
            for split, images in (("val", "train_images"), ("test", "test_images"))  # val's pictures are in train's
        },
        submission=ANSWER,
        reader=read_textvqa,
    ),
}


def read_benchmark(name: str, folder: str | Path, split: str | None = None) -> Benchmark:
    """Read a split of a set; pictures are looked for, not opened.

    Args:
        name: in ``SETS``.
        folder: where the official archives were unpacked.
        split: the set's default if None.

    Raises:
        ValueError: there is no such set or split, a file or a picture is missing, or a file is not the official one:
            no JSON, a key missing or of another kind, an id twice, a question without an annotation or an annotation
            without a question, no item at all.
    """
    info = _info(name)
    split = info.default if split is None else split
    if split not in info.files:
        raise ValueError(f"{info.title} has no split {split!r}; choose {', '.join(info.splits)}")
    place = SetFolder(folder, info.title, info.where, info.files[split])
    items = info.reader(place, split)
    if not items:
        raise ValueError(f"{info.title} in {folder} has nothing in split {split}; get its files from {info.where}")
    seen: set[int | str] = set()
    if doubled := [item.id for item in items if item.id in seen or seen.add(item.id)]:
        raise ValueError(
            f"{info.title} in {folder} has the id {named(doubled)} twice; get its files anew from {info.where}"
        )
    return Benchmark(name, info.task, split, tuple(items), place.digest)


def write_submission(
    benchmark: Benchmark,
    predictions: Mapping[int | str, str],
    path: Path,
    answerable: Mapping[int | str, float] | None = None,
) -> None:
    """Write predictions in the form that the set's owner takes; Flickr30k, which has none, takes COCO's.

    Texts are written as they are. For ScienceQA the index of the choice is written that a text means
    (:func:`lavit.benchmarks.choices.choice_index`), -1 where it means none. ``answerable``, for VizWiz alone, is how
    sure it is that a question has an answer, in [0, 1]; its evaluation reads it from the same file.

    Raises:
        ValueError: a prediction or a share is missing, of no item, or no text.
    """
    submissions.write(benchmark, predictions, Path(path), _info(benchmark.name).submission, answerable)


def read_submission(benchmark: Benchmark, path: Path) -> dict[int | str, str]:
    """Read a submission back; ScienceQA's indices come back as the texts of the choices, "" for -1.

    Raises:
        ValueError: the file is missing, not of that form, or has an id twice, an id of no item, or not all ids.
    """
    return submissions.read(benchmark, Path(path), _info(benchmark.name).submission)


def _info(name: str) -> SetInfo:
    if name not in SETS:
        raise ValueError(f"no set is called {name!r}; choose {', '.join(SETS)}")
    return SETS[name]
