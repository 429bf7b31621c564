"""A run's held-out pictures as tasks of lmms-eval: ``python -m eval.export_tasks FOLDER CONFIG``

The folder has ``lavit_easy_vqa`` (answers as they are written), ``lavit_easy_vqa_choices`` (the likeliest of all
answers) and ``lavit_captions``: the very pictures, questions and plans of `eval.vqa` and `eval.caption`, and their
metrics. docs/harness.md says how to run them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.export import run_export
from eval.vqa import picked_questions
from lavit.data.shards import Shards
from lavit.experiment import Experiment
from lavit.generation import TextPlan
from lavit.release import require_free
from lavit.workspace import Workspace

FUNCTIONS = Path(__file__).parent / "tasks" / "functions.py"
CAPTION = "Write a caption of the picture."
HEAD = """# Written by eval.export_tasks.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function functions.picture
"""
QUESTIONS = """output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{answers[0]}}}}"
process_results: !function functions.answer_scores
generation_kwargs: {plan}
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
CHOICES = """output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: !function functions.right_choice
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CAPTIONS = """output_type: generate_until
doc_to_text: "{caption}"
doc_to_target: caption
process_results: !function functions.written_caption
generation_kwargs: {plan}
metric_list:
  - metric: category_accuracy
    aggregation: !function functions.category
    higher_is_better: true
  - metric: cider
    aggregation: !function functions.cider
    higher_is_better: true
"""


def export_tasks(experiment: Experiment, run: Path, folder: Path) -> None:
    """Write the tasks of ``run`` to ``folder``.

    Raises:
        ValueError: the folder holds something, or data is missing.
    """
    require_free(folder)
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = folder.absolute()
    pictures = work.pictures("captions", cfg.split)
    numbers = pictures.distinct(cfg.captions)
    write_pictures(work.shards("captions", cfg.split), numbers, folder / "captions")
    lines = [{"id": n, "picture": f"captions/{n}.webp", "caption": pictures.captions[n]} for n in numbers]
    write_lines(folder / "captions.jsonl", lines)
    write_task(folder, "lavit_captions", "captions", CAPTIONS.format(caption=CAPTION, plan=kwargs_of(cfg.text)))
    if experiment.data.vqa is not None:
        picked, asked = picked_questions(work)
        write_pictures(work.shards("vqa", cfg.split), {n for n, _ in asked}, folder / "questions")
        choices = sorted({q["answers"][0] for _, q in asked})
        lines = [
            {"id": number, "picture": f"questions/{n}.webp", "choices": choices}
            | {key: q[key] for key in ("question", "answers")}
            for number, (n, q) in zip(picked, asked, strict=True)
        ]
        write_lines(folder / "questions.jsonl", lines)
        write_task(folder, "lavit_easy_vqa", "questions", QUESTIONS.format(plan=kwargs_of(cfg.answer)))
        write_task(folder, "lavit_easy_vqa_choices", "questions", CHOICES)
    shutil.copy(FUNCTIONS, folder / "functions.py")


def kwargs_of(plan: TextPlan) -> str:
    """A plan as lmms-eval has it, which is also YAML."""
    kwargs: dict[str, Any] = {
        "max_new_tokens": plan.max_tokens,
        "min_new_tokens": plan.min_tokens,
        "num_beams": plan.beams,
        "length_penalty": plan.length_penalty,
        "do_sample": plan.temperature > 0,
    }
    if plan.temperature:
        kwargs |= {"temperature": plan.temperature, "top_k": plan.top_k, "top_p": plan.top_p}
    return json.dumps(kwargs)


def write_pictures(shards: Shards, numbers: Iterable[int], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.webp").write_bytes(shards.file(number))


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_task(folder: Path, name: str, data: str, rest: str) -> None:
    head = HEAD.format(name=name, data=json.dumps(str(folder / f"{data}.jsonl")))
    (folder / f"{name}.yaml").write_text(head + rest, encoding="utf-8")


if __name__ == "__main__":
    run_export(export_tasks, "eval.export_tasks", sys.argv[1:])
