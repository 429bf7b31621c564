"""GenEval (arXiv 2310.11513) of drawings: ``make eval-geneval CONFIG=… ARGS="evaluation.geneval={prompts: …}"``.

The drawings of each way of drawing are in ``run/benchmarks/geneval/drawings-DIGEST``, laid out for the official scorer.
Where ``evaluation.geneval.detector`` and ``evaluation.clip`` name folders, they are scored here by the same rules, into
a folder for each setting, with results in the official form. A detector other than the official one gives other
figures.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.drawings import Wanted, at_work, check_draws, draw_missing, drawing_setting, not_run, setting_folder
from eval.models import digest_of, open_artist, weights_digests
from lavit.arguments import device_of_rank
from lavit.benchmarks.detector import ColourJudge, Detection, Detector
from lavit.benchmarks.geneval import KEY, GenEvalConfig, read_prompts, sample_path, write_layout
from lavit.data.images import open_image
from lavit.data.order import seed_for
from lavit.experiment import Experiment, run_stage
from lavit.launch import rank_and_world
from lavit.metrics.geneval import COLOURS, counted, judge, summary
from lavit.runs import (
    Progress,
    environment,
    is_done,
    mark_done,
    stage_folder,
    write_atomic,
    write_json,
)
from lavit.tokenizers.relevance import Clip

SHOWN = 50  # judgements that figures.json names
DRAW = 7  # which of the seeds
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NAMES = ("overall", *TAGS, "images_correct", "prompts_correct")

Detect = Callable[[Image.Image], dict[str, list[Detection]]]
Colours = Callable[[Image.Image, str, Sequence[Detection]], Sequence[str]]


def main(experiment: Experiment, run: Path) -> None:
    config, rank = experiment.evaluation.geneval or GenEvalConfig(), rank_and_world()[0]
    folder = stage_folder(run, "benchmarks/geneval")
    for key, place in ((f"{KEY}.detector", config.detector), ("evaluation.clip", experiment.evaluation.clip)):
        if place is not None and not Path(place).is_dir():
            raise ValueError(f"{key} names {place}, which is no folder; correct the path, or leave it out")
    if config.prompts is None:
        if rank == 0:
            reason = f"not run: {KEY}.prompts is not set"
            not_run(folder, "GenEval", dict.fromkeys(NAMES, reason))
        return
    check_draws(experiment)
    with at_work(folder):
        evaluate(experiment, run, config, read_prompts(config.prompts), folder)


def evaluate(
    experiment: Experiment, run: Path, config: GenEvalConfig, prompts: list[dict[str, Any]], folder: Path
) -> None:
    """Draw what is missing; on rank 0, score it as soon as all is there."""
    rank, clip_folder, judged_by = rank_and_world()[0], experiment.evaluation.clip, config.detector
    setting: dict[str, Any] = {"prompts": digest_of(prompts), "samples": config.samples}
    setting["drawing"] = drawing_setting(experiment, run, config.drawing) | {"texts": setting["prompts"]}
    drawings = folder / f"drawings-{digest_of(setting['drawing'])[:12]}"
    setting["detector"] = weights_digests(judged_by) if judged_by else None
    setting["clip"] = weights_digests(clip_folder) if clip_folder else None
    place = setting_folder(folder, setting)
    if is_done(place):
        if rank == 0:
            print(f"GenEval: {place / 'figures.json'}", flush=True)
        return
    # What is wrong with the judges is found before anything is drawn.
    clip = Clip(clip_folder, "evaluation.clip").to(device_of_rank()) if clip_folder else None
    detector = None
    if judged_by and rank == 0:
        detector = Detector(judged_by, device_of_rank())
        objects = (one for prompt in prompts for key in ("include", "exclude") for one in prompt.get(key, ()))
        detector.check_classes([one["class"] for one in objects])
    write_layout(drawings, prompts)
    wanted = [
        Wanted(sample_path(drawings, number, sample), prompt["prompt"], seed_for(experiment.seed, DRAW, number, sample))
        for number, prompt in enumerate(prompts)
        for sample in range(config.samples)
    ]
    progress = Progress(folder, len(wanted), "drawings") if rank == 0 else None
    system = functools.cache(lambda: open_artist(experiment, run))
    draw_missing(wanted, system, config.drawing, clip, experiment.evaluation.batch, progress)
    if progress is None:
        return
    place.mkdir(exist_ok=True)
    figures: dict[str, Any] = dict.fromkeys(NAMES)
    if detector is None:
        reason = f"not run: {KEY}.detector names no folder that is there; the official scorer reads {drawings}"
        figures["reasons"] = dict.fromkeys(NAMES, reason)
    else:
        colours = ColourJudge(clip, COLOURS) if clip else None
        results = judged(drawings, prompts, config.samples, detector.detect, colours, progress)
        write_atomic(place / "results.jsonl", "".join(json.dumps(result) + "\n" for result in results))
        figures |= figures_of(results, prompts)
        keys, shown = ("filename", "prompt", "correct", "reason"), results[:: max(1, len(results) // SHOWN)]
        figures["samples"] = [{key: result[key] for key in keys} for result in shown]
    told = {"n": len(wanted), "drawings": str(drawings), "setting": setting, "release": experiment.benchmarks.release}
    write_json(place / "figures.json", figures | told | {"environment": environment()})
    mark_done(place)
    progress.update(len(wanted))
    print(f"GenEval of {len(wanted):,} drawings: {place / 'figures.json'}", flush=True)


def judged(
    drawings: Path,
    prompts: list[dict[str, Any]],
    samples: int,
    detect: Detect,
    colours: Colours | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """A line for every drawing, as the official scorer writes them; ``correct`` is null where a colour is asked for and
    ``colours`` cannot be told."""
    results = []
    for number, prompt in enumerate(prompts):
        needs = any("color" in one for one in prompt["include"])
        for sample in range(samples):
            path = sample_path(drawings, number, sample)
            picture = open_image(path, str(path))
            objects = counted(detect(picture), prompt["tag"])
            correct, reason = None, "colours cannot be told without evaluation.clip"
            if colours is not None or not needs:
                correct, reason = judge(prompt, objects, functools.partial(colours or _no_colours, picture))
            boxes = {name: [[*one.box, one.score] for one in its] for name, its in objects.items()}
            results.append(
                {
                    "filename": str(path),
                    "tag": prompt["tag"],
                    "prompt": prompt["prompt"],
                    "correct": correct,
                    "reason": reason,
                    "metadata": json.dumps(prompt),
                    "details": json.dumps(boxes),
                }
            )
        progress.update(min((number + 1) * samples, len(prompts) * samples - 1), "judging")
    return results


def _no_colours(picture: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
    raise AssertionError("colours are asked for where none can be told")


def figures_of(results: list[dict[str, Any]], prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """The scores; null, with a reason, are those of prompts about colours without CLIP, and what they are part of."""
    known = [result for result in results if result["correct"] is not None]
    blind = sorted({result["tag"] for result in results if result["correct"] is None})
    per = len(results) // len(prompts)
    numbered = [{**result, "prompt": row // per} for row, result in enumerate(results) if result["correct"] is not None]
    found: dict[str, Any] = dict.fromkeys(NAMES) | (dict(summary(numbered)) if known else {})
    reasons = {tag: "no such prompts are in the file" for tag in TAGS if tag not in {r["tag"] for r in results}}
    if blind:
        spoilt = [*blind, "overall", "images_correct", "prompts_correct"]
        reasons |= dict.fromkeys(
            spoilt, "not run: colours are judged by CLIP, and evaluation.clip names no folder that is there"
        )
    return found | dict.fromkeys(reasons) | {"reasons": reasons}


if __name__ == "__main__":
    run_stage(main)
