"""Drawings for a standard measure: by whom, how, and only those that are not there yet."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from eval.models import artist_digests, digest_of, weights_digests, writer_precision
from lavit.arguments import batches
from lavit.benchmarks.drawings import DrawingConfig
from lavit.data.order import seed_for
from lavit.experiment import Experiment
from lavit.launch import rank_and_world
from lavit.pages.pictures import to_image
from lavit.painter import Painting, check_paints
from lavit.pipeline import LaVIT
from lavit.runs import FolderLock, Progress, is_done, stage_clock, write_json, written_whole
from lavit.tokenizers.relevance import Clip


class Wanted(NamedTuple):
    """A picture to be drawn: its file, its text and its seed."""

    path: Path
    text: str
    seed: int


def drawing_setting(experiment: Experiment, run: Path, config: DrawingConfig) -> dict[str, Any]:
    """All that drawings depend on beside their texts, in plain numbers, and nothing of how fast they come."""
    clip = experiment.evaluation.clip if config.candidates > 1 else None
    clip = clip if clip and Path(clip).exists() else None
    own = experiment.decoder.model
    painting: dict[str, Any] = {"guidance": config.guidance, "steps": config.steps, "sampler": config.sampler}
    own_model = experiment.benchmarks.release is None
    if own_model:  # a release has its own, which its digest stands for
        usual = {"guidance": own.guidance, "steps": own.sampling_steps, "sampler": own.sampler}
        painting = {name: usual[name] if value is None else value for name, value in painting.items()}
        painting["size"] = own.image_size
    words = config.words or (experiment.evaluation.image if own_model else None)
    precision = writer_precision(experiment)
    return {
        **({} if precision == "float32" else {"precision": precision}),
        "model": artist_digests(experiment, run),
        "words": dataclasses.asdict(words) if words else None,
        "painting": painting,
        "candidates": config.candidates,
        "judge": None if config.candidates == 1 else weights_digests(clip) if clip else "the model itself",
        "seed": experiment.seed,
    }


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """On rank 0 the folder's lock is held within it, and its seconds are counted."""
    if rank_and_world()[0]:
        yield
        return
    with FolderLock(folder), stage_clock(folder):
        yield


def check_draws(experiment: Experiment) -> None:
    """Raise ValueError for a run whose system does not draw from texts."""
    if experiment.benchmarks.release is None:
        check_paints(experiment)


def draw_missing(
    wanted: Sequence[Wanted],
    artist: Callable[[], LaVIT],
    config: DrawingConfig,
    clip: Clip | None,
    batch: int,
    progress: Progress | None = None,
) -> None:
    """Draw what is not there; every rank draws its share, and rank 0 waits for the others.

    The seed decides on a picture, whatever was drawn before a cut or beside it.
    """
    rank, world = rank_and_world()
    mine = [one for one in wanted[rank::world] if not one.path.is_file()]
    there = len(wanted) - len(mine)
    for part in batches(mine, max(1, batch // config.candidates)):
        for one, picture in zip(part, draw(artist(), part, config, clip), strict=True):
            one.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(one.path) as draft:
                picture.save(draft, "PNG")
        there += len(part)
        if progress is not None:
            progress.update(min(there, len(wanted) - 1), "drawing")
    while rank == 0 and (missing := sum(not one.path.is_file() for one in wanted)):
        if progress is not None:
            progress.update(len(wanted) - missing, "waiting for the other ranks")
        time.sleep(0.5)  # the launcher ends all ranks if one fails


def draw(system: LaVIT, wanted: Sequence[Wanted], config: DrawingConfig, clip: Clip | None) -> list[Image.Image]:
    """Pictures of texts: of each one's candidates the one that CLIP, or without it the model, finds most like it."""
    texts, seeds = [one.text for one in wanted], [one.seed for one in wanted]
    plan, count = config.words or system.plans.image, config.candidates
    painting: Painting = {"guidance": config.guidance, "steps": config.steps, "sampler": config.sampler}
    if count == 1 or clip is None:
        words = system.draw_best(texts, plan, count, seeds)
        return [to_image(one) for one in system.render(system.features(words), seeds, **painting)]
    repeated = [text for text in texts for _ in range(count)]
    several = [seed_for(seed, number) for seed in seeds for number in range(count)]
    words = system.draw_words(repeated, plan, several)
    pictures = [to_image(one) for one in system.render(system.features(words), several, **painting)]
    similar = (clip.images([clip.pixels(pictures)]) * clip.texts(repeated)).sum(-1).view(-1, count)
    return [pictures[row * count + best] for row, best in enumerate(similar.argmax(1).tolist())]


# -------------------------------------------------------------------------------------------------------- figures


def setting_folder(folder: Path, setting: dict[str, Any]) -> Path:
    """Where the figures of one setting are, all of it: those of another stay."""
    return folder / digest_of(setting)[:12]


def measured(folder: Path) -> list[Path]:
    """The folders of the settings that were measured."""
    return sorted(path.parent for path in folder.glob("*/figures.json") if is_done(path.parent))


def not_run(folder: Path, title: str, reasons: dict[str, str]) -> None:
    """Say in ``figures.json`` beside the settings' folders, and in a line, why nothing is measured now."""
    write_json(folder / "figures.json", dict.fromkeys(reasons) | {"reasons": reasons})
    before = "".join(f"; measured before: {path / 'figures.json'}" for path in measured(folder))
    print(f"{title}: {next(iter(reasons.values()))}{before}", flush=True)
