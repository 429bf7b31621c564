"""Between stages 1 and 2: pictures to visual words and merged features. ``make extract CONFIG=… GPUS=…``

Reads the run's prepared shards, or with ``extraction.input`` a folder of images or of img2dataset's tars as they are.
A shard of pictures becomes a shard of codes below ``run/extract``, whole or not at all, so that a run that was cut
goes on at the next shard; ranks share the shards, and a shard's result does not depend on their number.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lavit.data.images import SUFFIXES, open_image
from lavit.data.shards import Shards
from lavit.experiment import Experiment, run_stage
from lavit.runs import FolderLock, Progress, is_done, mark_done, stage_clock
from lavit.tokenizers.codes import Extracted, write_shard
from lavit.tokenizers.encoders import to_pixels
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import SPLITS, Workspace

log = logging.getLogger(__name__)
FOLDER_SHARD = 1000  # images of a folder that make a shard


class Pictures(NamedTuple):
    """The pictures of a shard.

    keys: their names; read: numbers within the shard to inputs of the tokenizer for those that can be read (None if
    there are none), their numbers, and why the others cannot.
    """

    keys: list[str]
    read: Callable[[list[int]], tuple[Tensor | None, list[int], dict[int, str]]]


class Job(NamedTuple):
    """A shard to be made: the folder of its codes, and how its pictures are opened."""

    folder: Path
    open: Callable[[], Pictures]


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    folder = work.folder("extract")
    if is_done(folder):
        return
    # Ranks need nothing of each other but that their shards appear, and the launcher ends all if one fails.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with FolderLock(folder) if rank == 0 else contextlib.nullcontext():
        with stage_clock(folder) if rank == 0 else contextlib.nullcontext():
            jobs = jobs_of(work)
            progress = Progress(folder, len(jobs), "shards") if rank == 0 else None
            encode(jobs, jobs[rank::world], work.tokenizer().to(device_of_rank()), experiment, progress)
            if rank == 0:
                while missing(jobs):
                    time.sleep(0.5)
                    progress.update(len(jobs) - missing(jobs), "waiting for the other ranks")
                mark_done(folder, {"shards": len(jobs)})


def device_of_rank() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def missing(jobs: list[Job]) -> int:
    return sum(not job.folder.is_dir() for job in jobs)


# ------------------------------------------------------------------------------------------------------ which pictures


def jobs_of(work: Workspace) -> list[Job]:
    """Every shard of the run's data, or of the configured input, in the same order on all ranks.

    Raises:
        ValueError: an input without images.
    """
    source, size = work.experiment.extraction.input, work.experiment.tokenizer.model.encoder.image_size
    if source is not None:
        return foreign_jobs(Path(source), work.folder("extract") / "input", size)
    jobs = []
    for part in work.parts():
        for split in SPLITS:
            pictures = work.pictures(part, split)
            jobs += [
                Job(work.code_folder(part, tar), partial(prepared, pictures, numbers, size))
                for tar, numbers in pictures.shards.by_tar()
            ]
    return jobs


def prepared(pictures: PictureSet, numbers: range, size: int) -> Pictures:
    """A prepared shard. Its pictures were read when it was written: one that cannot be read now is an error."""

    def read(wanted: list[int]) -> tuple[Tensor, list[int], dict[int, str]]:
        return pictures.inputs([numbers[n] for n in wanted], size), wanted, {}

    return Pictures([pictures.shards.keys[n] for n in numbers], read)


def foreign_jobs(source: Path, out: Path, size: int) -> list[Job]:
    """The tars of a folder, or its images a thousand at a time."""
    tars = [source] if source.suffix == ".tar" else sorted(source.glob("*.tar"))
    if tars:
        return [Job(out / tar.stem, partial(foreign_tar, tar, size)) for tar in tars]
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"extraction.input {source} holds no tars and no images ({', '.join(SUFFIXES)})")
    jobs = []
    for start in range(0, len(paths), FOLDER_SHARD):
        part = paths[start : start + FOLDER_SHARD]
        keys = [path.relative_to(source).as_posix() for path in part]
        opened = Pictures(keys, partial(read_foreign, part.__getitem__, keys, size))
        jobs.append(Job(out / f"images-{start // FOLDER_SHARD:06d}", partial(Pictures, *opened)))
    return jobs


def foreign_tar(tar: Path, size: int) -> Pictures:
    shard = Shards(tar)
    return Pictures(shard.keys, partial(read_foreign, shard.image, shard.keys, size))


def read_foreign(
    image: Callable[[int], bytes | Path], keys: list[str], size: int, numbers: list[int]
) -> tuple[Tensor | None, list[int], dict[int, str]]:
    """Pictures that nobody has looked at yet: those that are missing or cannot be read are named."""
    pixels, good, bad = [], [], {}
    for n in numbers:
        try:
            pixels.append(to_pixels(open_image(image(n), keys[n]), size))
            good.append(n)
        except ValueError as error:
            bad[n] = str(error)
    return (torch.stack(pixels) if pixels else None), good, bad


# ------------------------------------------------------------------------------------------------------------ encoding


def encode(
    jobs: list[Job], own: list[Job], tokenizer: Tokenizer, experiment: Experiment, progress: Progress | None
) -> None:
    """Make the shards of ``own`` that are not there yet."""
    made, start = 0, time.perf_counter()

    def tell(more: int) -> None:
        nonlocal made
        made += more
        if progress:
            progress.update(len(jobs) - missing(jobs), f"{made / (time.perf_counter() - start):.1f} pictures a second")

    for job in own:
        if not job.folder.is_dir():
            encode_shard(job, tokenizer, experiment.extraction.batch, experiment.extraction.features, tell)
            tell(0)
    if made:
        seconds = time.perf_counter() - start
        print(f"{made} pictures in {seconds:.0f} s, {made / seconds:.1f} a second", flush=True)


@torch.no_grad()
def encode_shard(job: Job, tokenizer: Tokenizer, batch: int, features: bool, tell: Callable[[int], None]) -> None:
    """Make one shard; pictures that cannot be read get no tokens, and are named in the log and in the shard."""
    keys, read = job.open()
    pictures = [Extracted(torch.zeros(0, dtype=torch.int64), torch.zeros(0, tokenizer.config.merger.width))] * len(keys)
    skipped: dict[str, str] = {}
    for first in range(0, len(keys), batch):
        numbers = list(range(first, min(first + batch, len(keys))))
        inputs, good, bad = read(numbers)
        if inputs is not None:
            for n, tokens in zip(good, tokens_of(tokenizer, inputs), strict=True):
                pictures[n] = tokens
        for n, reason in bad.items():
            skipped[keys[n]] = reason
            log.warning("left out: %s", reason)
        tell(len(numbers))
    write_shard(job.folder, pictures, keys, skipped, features)


def tokens_of(tokenizer: Tokenizer, inputs: Tensor) -> list[Extracted]:
    """The tokens of a batch of inputs, on the CPU."""
    tokens = tokenizer.encode_features(tokenizer.patch_features(inputs.to(tokenizer.channel_weight.device)))
    rows = zip(tokenizer.words(tokens).cpu(), tokens.features.float().cpu(), tokens.keep.cpu(), strict=True)
    return [Extracted(words[keep], features[keep]) for words, features, keep in rows]


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    run_stage(main)
