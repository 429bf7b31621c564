"""ScienceQA: questions with choices, half of them about a picture (arXiv 2209.09513)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavit.benchmarks.files import OfficialFile, SetFolder
from lavit.benchmarks.items import Item

WITH_IMAGE = "-img"  # ends the name of a split that is left with its questions about pictures
GROUPS = ("subject", "topic", "category", "skill", "grade", "task")
LETTER_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")
LETTER_FIRST = re.compile(r"\(?([A-Z])[).:]\s")
LETTER_TOLD = re.compile(r"[Tt]he answer is:? \(?([A-Z])\b")


def read_scienceqa(folder: SetFolder, split: str) -> list[Item]:
    """``problems.json`` and ``pid_splits.json``; pictures stand in ``test/PID/image.png``.

    An item's reference is the text of the right choice. ``about`` has the choices and the place of the right one, the
    hint and the lecture ("" where there are none), and the subject, topic, category, skill, grade and task.

    Raises:
        ValueError: a file is missing or altered, images are missing.
    """
    official = split.removesuffix(WITH_IMAGE)
    splits, problems = folder.read("splits", ids_as_keys=True), folder.read("problems", ids_as_keys=True)
    rows = []
    for pid in splits.texts(splits.take(splits.content, official, list), official):
        problem = problems.take(problems.content, pid, dict)
        if problems.take(problem, "split", str, pid) != official:
            raise problems.altered(f"problem {pid} is of split {problem['split']}, in {splits.path.name} of {official}")
        image = f"{official}/{pid}/{problems.take(problem, 'image', str, pid)}" if problem.get("image") else None
        if image is not None or official == split:
            rows.append((pid, image, problem))
    paths = folder.images(image for _, image, _ in rows if image is not None)
    return [_item(problems, pid, paths.get(image), problem) for pid, image, problem in rows]


def choice_index(text: str, choices: Sequence[str]) -> int | None:
    """Which choice a text means; None if none.

    A text means a choice if it is the choice's own text, its letter alone ("B", "(B)", "B."), begins with the letter
    ("B. Ohio", "(B) Ohio"), or says "the answer is B".
    """
    text = text.strip()
    # Some questions ask for the right capitals or signs: case and full stops are overlooked where only one is left.
    for form in (str.strip, _plain):
        same = [n for n, choice in enumerate(choices) if form(choice) == form(text)]
        if len(same) == 1 or (same and form is str.strip):
            return same[0]
    found = LETTER_ALONE.fullmatch(text) or LETTER_FIRST.match(text) or LETTER_TOLD.search(text)
    index = ord(found[1]) - ord("A") if found else len(choices)
    return index if index < len(choices) else None


def _item(file: OfficialFile, pid: str, image: Path | None, problem: dict[str, Any]) -> Item:
    choices = file.texts(file.take(problem, "choices", list, pid), pid, "choices")
    answer = file.take(problem, "answer", int, pid)
    if not 0 <= answer < len(choices):
        raise file.altered(f"{pid}.answer is {answer}, of {len(choices)} choices")
    about = {"choices": choices, "answer": answer}
    about |= {name: file.take(problem, name, str, pid) for name in ("hint", "lecture", *GROUPS)}
    return Item(pid, image, file.take(problem, "question", str, pid), (choices[answer],), about)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()
