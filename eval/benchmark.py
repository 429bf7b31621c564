"""Captions and answers on standard sets: ``make eval-caption SET=nocaps DATA=FOLDER``, ``make eval-vqa SET=gqa …``.

``run/benchmarks/SET-SPLIT/DIGEST`` is of one setting, all of it: model, prompts, decoding, items. Every rank
appends what it wrote to a file of its own, so that what was cut goes on, with as many ranks as there are now. At the
end stand there ``figures.json`` and ``submission.json``, in the form that the set's owner takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.models import digest_of, open_writer, writer_digests, writer_precision
from eval.scoring import score
from lavit.arguments import batches
from lavit.benchmarks.items import Benchmark, Item
from lavit.benchmarks.protocol import BenchmarksConfig
from lavit.benchmarks.sets import SETS, read_benchmark, write_submission
from lavit.config import to_yaml
from lavit.data.documents import QUESTION, Document
from lavit.data.order import evenly, seed_for
from lavit.experiment import Experiment, run_stage
from lavit.generation.cache import check_prompts
from lavit.launch import rank_and_world
from lavit.runs import FolderLock, Progress, environment, is_done, mark_done, read_json, stage_clock, write_json
from lavit.tokens import Picture

UNANSWERABLE = "unanswerable"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def main(experiment: Experiment, run: Path) -> None:
    config = experiment.benchmarks
    rank = rank_and_world()[0]
    if not config.data and rank == 0:
        print(f"benchmarks.data names no folder of a standard set ({', '.join(SETS)}): none is scored", flush=True)
    if other := [name for name in config.sets if name in SETS and config.task not in (None, SETS[name].task)]:
        about = SETS[other[0]]
        raise ValueError(f"{about.title}: `make eval-{'caption' if about.task == 'caption' else 'vqa'}` scores it")
    writer = functools.cache(lambda: open_writer(experiment, run))
    for name, place in config.data.items():
        if config.sets and name not in config.sets:
            continue
        benchmark = limited(read_benchmark(name, place, config.split), config.limit)
        setting = setting_of(benchmark, experiment, run)
        folder = folder_of(run, benchmark, setting)
        folder.mkdir(parents=True, exist_ok=True)
        if is_done(folder):
            if rank == 0 and could_be_scored_better(folder):
                finish(benchmark, written(folder), setting, experiment, folder)
        else:
            with FolderLock(folder) if rank == 0 else contextlib.nullcontext():
                with stage_clock(folder) if rank == 0 else contextlib.nullcontext():
                    evaluate(benchmark, setting, writer, experiment, folder)
        if rank == 0:
            path = folder / "figures.json"
            print(f"{SETS[name].title}: {said_of(read_json(path))}{path}", flush=True)


def said_of(figures: dict[str, Any]) -> str:
    """The figures that are looked for first, with their intervals."""
    said = []
    for name in ("cider", "accuracy", "accuracy_lemmatised"):
        if figures.get(name) is not None:
            low, high = figures[f"{name}_interval"]
            said.append(f"{name} {figures[name]:.4f} [{low:.4f}, {high:.4f}]")
    return f"{', '.join(said)} of {figures['n']:,} items, " if said else ""


def limited(benchmark: Benchmark, limit: int) -> Benchmark:
    """``limit`` items, evenly spread; 0 leaves all."""
    return dataclasses.replace(benchmark, items=tuple(evenly(list(benchmark.items), limit or len(benchmark.items))))


def setting_of(benchmark: Benchmark, experiment: Experiment, run: Path) -> dict[str, Any]:
    """All that a result depends on, and nothing of how fast it comes."""
    return {
        "set": benchmark.name,
        "split": benchmark.split,
        "annotations": benchmark.digest,
        "items": digest_of([item.id for item in benchmark.items]),
        "pictures": pictures_digest(benchmark.items),
        "model": writer_digests(experiment, run),
        "precision": writer_precision(experiment),
        "asked": asked_how(benchmark, experiment),
        "seed": experiment.seed,
    }


def pictures_digest(items: Sequence[Item]) -> str:
    """sha256 of the names and sizes of all pictures, which tells of most changes and takes no reading.

    Raises:
        ValueError: one that is not there.
    """
    try:
        paths = {item.image for item in items} - {None}
        sizes = {f"{path.parent.name}/{path.name}": path.stat().st_size for path in paths}
    except OSError as error:
        raise ValueError(f"the picture {error.filename} cannot be read ({error.strerror}); get it again") from None
    return digest_of(sorted(sizes.items()))


def asked_how(benchmark: Benchmark, experiment: Experiment) -> dict[str, Any]:
    """The prompts and plans that have a part in this set."""
    config, few = experiment.benchmarks, experiment.pyramid is not None and experiment.benchmarks.release is None
    asked: dict[str, Any] = {"examples": dataclasses.asdict(experiment.evaluation.in_context)} if few else {}
    if benchmark.task == "caption":
        return asked | {"caption": config.caption or "", "captions": dataclasses.asdict(config.captions)}
    asked |= {"question": config.question or ("{}" if few else QUESTION), "answers": dataclasses.asdict(config.answers)}
    metric = SETS[benchmark.name].metric
    asked |= {"choices": config.choices} if metric == "choice" else {}
    return asked | ({"answerable": config.answerable} if metric == "vizwiz" else {})


def folder_of(run: Path, benchmark: Benchmark, setting: dict[str, Any]) -> Path:
    return run / "benchmarks" / f"{benchmark.name}-{benchmark.split}" / digest_of(setting)[:12]


# ------------------------------------------------------------------------------------------------------- to write


def evaluate(
    benchmark: Benchmark, setting: dict[str, Any], writer: Callable[[], Any], experiment: Experiment, folder: Path
) -> None:
    """Write what is missing; on rank 0, score it as soon as all is there."""
    rank, world = rank_and_world()
    progress = Progress(folder, len(benchmark.items), "items") if rank == 0 else None
    there = written(folder)
    # By picture, so that a picture with several questions is seen once. Which rank has which is settled by all items,
    # not by those that are missing: ranks may see different files while others write already.
    mine = [group for n, group in enumerate(by_picture(benchmark.items)) if n % world == rank]
    mine = [[item for item in group if item.id not in there] for group in mine]
    with (folder / f"predictions-{rank}.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" if file.tell() else "")  # the last line may have been cut
        done = len(there)
        for some in batches([group for group in mine if group], experiment.benchmarks.batch):
            lines = list(answered(writer(), some, benchmark, experiment))
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            done += len(lines)
            if progress is not None:
                progress.update(min(done, len(benchmark.items) - 1))
    if progress is not None:
        while len(there := written(folder)) < len(benchmark.items):  # the launcher ends all ranks if one fails
            progress.update(len(there), "waiting for the other ranks")
            time.sleep(0.5)
        finish(benchmark, there, setting, experiment, folder)
        progress.update(len(benchmark.items))


def by_picture(items: Sequence[Item]) -> list[list[Item]]:
    """Items with the same picture together, in the order of their first; one without a picture is alone."""
    groups: dict[Any, list[Item]] = {}
    for number, item in enumerate(items):
        groups.setdefault(number if item.image is None else item.image, []).append(item)
    return list(groups.values())


def answered(
    writer: Any, groups: list[list[Item]], benchmark: Benchmark, experiment: Experiment
) -> Iterator[dict[str, Any]]:
    """A line for each item of pictures that are worked on together: its id, and the text that was written."""
    config, items = experiment.benchmarks, [item for group in groups for item in group]
    shown = [group[0].image for group in groups if group[0].image is not None]
    seen = dict(zip(shown, writer.see(shown), strict=True))
    pictures = [seen.get(item.image) for item in items]
    seeds = [seed_for(experiment.seed, *str(item.id).encode()) for item in items]
    if benchmark.task == "caption":
        prompts = writer.caption_prompts(pictures, config.caption or "")
        texts = writer.write_texts(prompts, config.captions, seeds)
        yield from ({"id": item.id, "text": text} for item, text in zip(items, texts, strict=True))
        return
    lines: list[dict[str, Any]] = [{"id": item.id} for item in items]
    likeliest = config.choices == "likelihood"
    prompts, cut = questions(writer, items, pictures, config, letters=not likeliest)
    chosen = [n for n, item in enumerate(items) if likeliest and item.about.get("choices")]
    for n in chosen:
        choices = [str(choice) for choice in items[n].about["choices"]]
        lines[n]["text"] = choices[int(writer.text_scores([prompts[n]], choices)[0].argmax())]
    free = [n for n in range(len(items)) if "text" not in lines[n]]
    texts = writer.write_texts([prompts[n] for n in free], config.answers, [seeds[n] for n in free])
    for n, text in zip(free, texts, strict=True):
        lines[n]["text"] = text
    for line, without in zip(lines, cut, strict=True):
        line |= {"without_hint": True} if without else {}
    if SETS[benchmark.name].metric == "vizwiz" and config.answerable:
        for line, share in zip(lines, answerable(writer, items, pictures, config), strict=True):
            line["answerable"] = share
            line["text"] = line["text"] if share >= 0.5 else UNANSWERABLE
    yield from lines


def questions(
    writer: Any, items: list[Item], pictures: list[Picture | None], config: BenchmarksConfig, letters: bool
) -> tuple[list[Document], list[bool]]:
    """A prompt for each item, and which of them had to leave out their hint, to fit into what the model reads.

    After it come an answer's tokens or, where choices are scored and not put as ``letters``, the longest of them.

    Raises:
        ValueError: one that does not fit without it, by its item's id.
    """
    prompts, cut = [], []
    for item, picture in zip(items, pictures, strict=True):
        scored = [] if letters else [str(choice) for choice in item.about.get("choices") or ()]
        room = max(map(len, writer.text_ids(scored)), default=config.answers.max_tokens)
        for hint in (True, False):
            text = asked_text(item, letters, hint)
            (prompt,) = writer.question_prompts([picture], [text], config.question)
            try:
                check_prompts(writer.model, [prompt], room)
                break
            except ValueError as error:
                if not (hint and item.about.get("hint")):
                    raise ValueError(f"item {item.id}: {error}") from None
        prompts.append(prompt)
        cut.append(not hint)
    return prompts, cut


def asked_text(item: Item, letters: bool, hint: bool = True) -> str:
    """The question, after its ``hint`` where there is one and, with ``letters``, before its choices."""
    before = f"{item.about['hint']} " if hint and item.about.get("hint") else ""
    choices = item.about.get("choices") if letters else None
    options = "".join(f" ({letter}) {choice}" for letter, choice in zip(LETTERS, choices or (), strict=False))
    return f"{before}{item.question}{options}"


def answerable(writer: Any, items: list[Item], pictures: list[Picture | None], config: BenchmarksConfig) -> list[float]:
    """How much likelier the model finds "yes" than "no" when it is asked whether there is an answer: p / (p + q)."""
    forms = [config.answerable.replace("{}", item.question or "") for item in items]
    prompts = writer.question_prompts(pictures, forms, config.question)
    scores: Tensor = writer.text_scores(prompts, ["yes", "no"], mean=False)
    return scores.double().softmax(1)[:, 0].tolist()


# --------------------------------------------------------------------------------------------------- what was written


def written(folder: Path) -> dict[int | str, dict[str, Any]]:
    """Every line of every rank by its item's id, the first where there are two; a line that was cut is not one."""
    found: dict[int | str, dict[str, Any]] = {}
    for path in sorted(folder.glob("predictions-*.jsonl")):
        for text in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):  # also of a character that was cut
                line = json.loads(text)
                found.setdefault(line["id"], line)
    return found


def could_be_scored_better(folder: Path) -> bool:
    """Whether figures are missing for want of a program that may be there by now."""
    figures = read_json(folder / "figures.json") if (folder / "figures.json").is_file() else {}
    return bool(figures.get("reasons", {}).keys() - {"score"})


def finish(
    benchmark: Benchmark,
    lines: dict[int | str, dict[str, Any]],
    setting: dict[str, Any],
    experiment: Experiment,
    folder: Path,
) -> None:
    """Score what was written, and write it as the set's owner takes it."""
    predictions = {item.id: lines[item.id]["text"] for item in benchmark.items}
    about = SETS[benchmark.name]
    told = {
        "n": len(predictions),
        "title": about.title,
        "official_n": about.counts.get(benchmark.split),
        "setting": setting,
        "release": experiment.benchmarks.release,
        "config": digest_of(to_yaml(experiment)),
        "environment": environment(),
    }
    figures: dict[str, Any] = {}
    asked = {item.id: lines[item.id]["answerable"] for item in benchmark.items if "answerable" in lines[item.id]}
    shares = asked if len(asked) == len(predictions) else None
    cut = sum("without_hint" in line for line in lines.values())
    told |= {"without_hint": cut} if cut else {}
    if all(item.references for item in benchmark.items):
        figures = score(benchmark, predictions, experiment.seed, shares)
    else:
        figures["reasons"] = {"score": "the owner keeps the answers of this split; send in submission.json"}
    whole = len(predictions) == about.counts.get(benchmark.split, len(predictions))
    write_submission(benchmark, predictions, folder / f"submission{'' if whole else '-part'}.json", shares)
    samples = [
        {"id": item.id, "question": item.question, "truth": list(item.references), "written": predictions[item.id]}
        for item in limited(benchmark, 50).items
    ]
    write_json(folder / "figures.json", figures | told | {"samples": samples})
    mark_done(folder)


if __name__ == "__main__":
    run_stage(main)
